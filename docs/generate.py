"""Pages that are made from the code when the documentation is built: commands, weights, and the systems' own pages.

mkdocs.yml names this file as a hook; `python docs/generate.py commands` prints a page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ROOT / "src/avcap_zoo/systems"
_COLUMNS = "100"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the made pages to those of the folder (mkdocs calls this)."""
    from mkdocs.structure.files import File

    pages = {"commands.md": commands_page(), "weights.md": weights_page()}
    pages |= {
        f"systems/{path.parent.name}.md": path.read_text(encoding="utf-8") for path in SYSTEMS.glob("*/README.md")
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links between pages and systems' pages as the site has them; in the repository they lead to README files."""
    markdown = re.sub(r"\]\(\.\./src/avcap_zoo/systems/(\w+)/README\.md", r"](systems/\1.md", markdown)
    return markdown.replace("](../../../../docs/", "](../")


def commands_page() -> str:
    """Every verb with what its own parser says of it."""
    from avcap_zoo.cli.main import AVCAP_VERBS, TRAINER_VERBS
    from avcap_zoo.cli.short_names import DATA_MODULES
    from avcap_zoo.cli.short_names import SYSTEMS as NAMED

    lines = [
        "# Every command",
        "",
        "`avcap VERB`, or `python -m avcap_zoo VERB`. `fit`, `validate`, `test` and `predict` are also verbs of the",
        "command `lightning`. Exit codes: 0 done, 1 an error of the run, 2 the command or a file cannot be used as",
        "given, 130 interrupted. `AVCAP_TRACEBACK=1` shows where an error came from.",
        "",
        "| verb | what it does |",
        "|---|---|",
        *(f"| [`{name}`](#{name}) | {verb.summary} |" for name, verb in AVCAP_VERBS.items()),
    ]
    for name, verb in AVCAP_VERBS.items():
        lines += ["", f"## {name}", "", f"{verb.summary[0].upper()}{verb.summary[1:]}.", ""]
        if name not in TRAINER_VERBS:
            lines += _text(printed([name, "--help"]))
        elif name == "fit":
            lines += ["All options, and those of every system and data module:", ""]
            lines += _folded("avcap fit --help", printed(["fit", "--help"]))
            for option, names in (("model", NAMED), ("data", DATA_MODULES)):
                for short in names:
                    lines += _folded(f"--{option}.help {short}", printed(["fit", f"--{option}.help", short]))
        else:
            lines += [
                f"Takes the options of [fit](#fit), and `--ckpt_path`: `avcap {name} -c FILE --ckpt_path best.ckpt`."
            ]
    return "\n".join(lines) + "\n"


def weights_page() -> str:
    """Every weight of checkpoints/manifest.yaml, by system, with its licence."""
    entries = yaml.safe_load((ROOT / "checkpoints/manifest.yaml").read_text(encoding="utf-8"))["weights"]
    lines = [
        "# Weights and licences",
        "",
        "Nothing is downloaded behind your back. `avcap doctor -c CONFIG` says which of these a configuration needs,",
        "which are here, and how to get the others. Files go into `checkpoints/`; a hub id is fetched by",
        "`hf download ID`. A file beside `checkpoints/manifest.yaml`, of which this page is made, is compared with the",
        "size and hash that stand there.",
        "",
        "Licences are given as far as we know them; read them yourself before you use a model, above all commercially.",
    ]
    for system in sorted({name for entry in entries for name in entry["needed_by"]}):
        lines += ["", f"## {system}", "", "| what | where | licence |", "|---|---|---|"]
        for entry in entries:
            if system in entry["needed_by"]:
                where = f"hub: `{entry['hub_id']}`" if "hub_id" in entry else f"`{entry['file']}`: {entry['source']}"
                what = entry["what"] + (f" ({entry['note']})" if "note" in entry else "")
                lines.append(f"| {what} | {where} | {entry['licence']} |")
    return "\n".join(lines) + "\n"


def printed(arguments: list[str]) -> str:
    """What `avcap` prints for a question that ends in an answer, such as `--help`."""
    os.environ["COLUMNS"] = _COLUMNS
    from avcap_zoo.cli.main import avcap

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        avcap(arguments)
    return out.getvalue().rstrip()


def _text(content: str) -> list[str]:
    return ["```text", content, "```"]


def _folded(title: str, content: str) -> list[str]:
    return [f'??? note "{title}"', "", *(f"    {line}".rstrip() for line in "\n".join(_text(content)).splitlines()), ""]


if __name__ == "__main__":
    sys.stdout.write({"commands": commands_page, "weights": weights_page}[sys.argv[1]]())
