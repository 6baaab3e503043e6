"""Code blocks of Markdown pages, and what can be said of them without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.house import tree

PROGRAMS = {"avcap", "lightning", "make", "python", "python3.9", "pip", "hf", "export", "source", "cp"}
_FENCE = re.compile(r"^(`{3,})\s*([\w-]*)(.*)$")
_MARKER = re.compile(r"^<!--\s*(run|needs:.*?)\s*-->$")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: path from the root of the tree.
        line: of its first line of code, from 1.
        language: of the fence, or what an indented block looks like: `bash`, `python` or `text`.
        text: the code.
        marker: `run`, `needs: WHAT`, or "".
        title: name of the file that it is, or "".
    """

    page: str
    line: int
    language: str
    text: str
    marker: str = ""
    title: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The command lines of a block for a shell; output, comments and prompts left out."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        lines = [line.strip().removeprefix("$ ") for line in joined.splitlines()]
        return [line for line in lines if _program(line) in PROGRAMS]


def pages() -> list[Path]:
    """Every page that a user reads."""
    return [
        tree.ROOT / "README.md",
        *sorted((tree.ROOT / "docs").glob("*.md")),
        *sorted((tree.ROOT / "src/avcap_zoo/systems").glob("*/README.md")),
    ]


def blocks_of(text: str, page: str) -> Iterator[Block]:
    """The fenced and the indented blocks of a page, in order."""
    lines = text.splitlines()
    position, marker = 0, ""
    while position < len(lines):
        line = lines[position]
        fence = _FENCE.match(line)
        if found := _MARKER.match(line.strip()):
            marker = found[1]
        elif fence:
            end = next(n for n in range(position + 1, len(lines)) if lines[n].rstrip() == fence[1])
            code = "\n".join(lines[position + 1 : end])
            title = _TITLE.search(fence[3])
            yield Block(page, position + 2, fence[2] or _looks_like(code), code, marker, title[1] if title else "")
            position, marker = end, ""
        elif line.startswith("    ") and (position == 0 or not lines[position - 1].strip() or marker):
            end = position
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            code = "\n".join(each[4:] for each in lines[position:end]).rstrip()
            yield Block(page, position + 1, _looks_like(code), code, marker)
            position, marker = end - 1, ""
        elif line.strip():
            marker = ""
        position += 1


def all_blocks() -> list[Block]:
    """Of all pages."""
    return [
        block
        for path in pages()
        for block in blocks_of(path.read_text(encoding="utf-8"), path.relative_to(tree.ROOT).as_posix())
    ]


def words_of(command: str) -> list[str]:
    """A command as the program gets it: comments, variables in front and what follows a pipe left out."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    for stop in ("|", "&&", ">"):
        if stop in words:
            words = words[: words.index(stop)]
    if words[:3] == ["python", "-m", "avcap_zoo"]:
        words = ["avcap", *words[3:]]
    return words


def named_problems(words: list[str]) -> list[str]:
    """Files, targets, extras and hub ids that a command names and the tree does not have."""
    problems = [word for word in words if word.startswith("configs/") and not _exists(word)]
    if words[0] == "make":
        targets = re.findall(r"^([a-z][\w-]*):", (tree.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        problems += [word for word in words[1:] if "=" not in word and word not in targets]
    elif words[0] == "python" and len(words) > 1:
        script = f"{words[2].replace('.', '/')}.py" if words[1] == "-m" else words[1]
        problems += [] if script == "venv.py" or (tree.ROOT / script).is_file() else [script]
    elif words[0] == "pip":
        extras = re.findall(r"avcap-zoo\[([\w,]+)\]", " ".join(words))
        known = tree.setup_cfg()["options.extras_require"]
        problems += [extra for named in extras for extra in named.split(",") if extra not in known]
    elif words[:2] == ["hf", "download"]:
        entries = yaml.safe_load((tree.ROOT / "checkpoints/manifest.yaml").read_text(encoding="utf-8"))["weights"]
        problems += [words[2]] if words[2] not in {entry.get("hub_id") for entry in entries} else []
    return problems


def _exists(word: str) -> bool:
    return any(tree.ROOT.glob(word)) if "*" in word else (tree.ROOT / word).exists()


def _program(line: str) -> str:
    words = line.split()
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words[0].removeprefix(".venv/bin/") if words else ""


def _looks_like(code: str) -> str:
    first = next((line for line in code.splitlines() if line.strip()), "")
    if _program(first.removeprefix("$ ")) in PROGRAMS:
        return "bash"
    return "python" if re.match(r"(from|import) \w", first) else "text"
