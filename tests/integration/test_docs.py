"""Every code block of the pages: Python runs, commands are run or at least accepted by their own parsers."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module, util
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from avcap_zoo.cli.main import AVCAP_VERBS, TRAINER_VERBS, avcap, lightning
from avcap_zoo.cli.usage import CommandLineError, VerbParser
from tests.house import tree
from tests.integration.documents import Block, all_blocks, blocks_of, named_problems, words_of
from tests.integration.tiny import tiny_data, tiny_lavcap, tiny_trainer
from tests.unit.data_modules.media_files import encode, numbered_frames, tone

BLOCKS = all_blocks()
PROGRAMS = {"avcap": (avcap, AVCAP_VERBS), "lightning": (lightning, TRAINER_VERBS)}
TAKES_OPTIONS_OF_FIT = {"cache", "doctor"}


def run(words: list[str]) -> tuple[int, str]:
    """A command in this process: exit code, and what it said."""
    said = io.StringIO()
    program, _ = PROGRAMS[words[0]]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code: int | str | None = program(words[1:])
        except SystemExit as stop:
            code = stop.code
    return int(code or 0), said.getvalue()


def parse_problem(words: list[str]) -> str:
    """What keeps a command of ours from being accepted; "" if nothing does. Nothing is built or run."""
    program, verb, arguments = words[0], words[1], words[2:]
    if verb not in PROGRAMS[program][1]:
        return f"no verb {verb}"
    own = [file for file in _configs(arguments) if not (tree.ROOT / file).is_file()]
    if verb in TRAINER_VERBS:
        if own or any(word.endswith(".help") or word in {"--help", "--print_config"} for word in arguments):
            return ""  # overlays of the reader's own; questions that answer themselves
        if "--ckpt_path" in arguments:  # all four verbs have it, and none looks at it with --print_config
            position = arguments.index("--ckpt_path")
            arguments = arguments[:position] + arguments[position + 2 :]
        return _settings_problem(tuple(arguments))
    rest = _not_of_the_verb(verb, arguments)
    if rest and verb in TAKES_OPTIONS_OF_FIT:
        return "" if own or "ground" in " ".join(rest) else parse_problem(["lightning", "fit", *rest])
    return f"no options {rest}" if rest else ""


class AcceptedError(Exception):
    """A parser has taken its options; the rest is in the first argument."""


def _not_of_the_verb(verb: str, arguments: list[str]) -> list[str]:
    """What the verb's own parser leaves; the verb stops where its options are read.

    Raises:
        CommandLineError: it does not take them.
    """
    parse = VerbParser.parse_known_args

    def parse_and_stop(self: VerbParser, *given: Any, **options: Any) -> Any:
        raise AcceptedError(parse(self, *given, **options)[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VerbParser, "parse_known_args", parse_and_stop)
        try:
            import_module(AVCAP_VERBS[verb].module).main(arguments)
        except AcceptedError as accepted:
            rest: list[str] = accepted.args[0]
            return rest
    raise AssertionError(f"avcap {verb} read no options: {arguments}")


@cache
def _settings_problem(arguments: tuple[str, ...]) -> str:
    """What the Trainer's verbs, which share files and options, say against these."""
    code, said = run(["lightning", "fit", *arguments, "--print_config"])
    return said if code else ""


def _configs(arguments: list[str]) -> list[str]:
    return [value for option, value in pairwise(arguments) if option in {"-c", "--config"}]


COMMANDS = {
    tuple(words): block.place
    for block in BLOCKS
    if block.language in {"bash", "console", "shell"}
    for command in block.commands()
    if (words := words_of(command))
}


def test_the_pages_are_read() -> None:
    assert {"README.md", "docs/index.md", "src/avcap_zoo/systems/lavcap/README.md"} <= {b.page for b in BLOCKS}
    assert len(COMMANDS) > 60
    assert {block.language for block in BLOCKS} >= {"bash", "python", "text", "yaml"}


def test_what_commands_name_exists() -> None:
    problems = {place: found for words, place in COMMANDS.items() if (found := named_problems(list(words)))}
    assert problems == {}
    assert named_problems(["make", "everything"]) == ["everything"]
    assert named_problems(["pip", "install", "avcap-zoo[metrics,nonsense]"]) == ["nonsense"]
    assert named_problems(["hf", "download", "org/model"]) == ["org/model"]
    assert named_problems(["avcap", "fit", "-c", "configs/no.yaml"]) == ["configs/no.yaml"]


@pytest.fixture
def at_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tree.ROOT)
    monkeypatch.setenv("AVCAP_DATA", str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("at_the_root")
def test_commands_are_accepted() -> None:
    problems = {}
    for words, place in COMMANDS.items():
        if words[0] in PROGRAMS and len(words) > 1:
            try:
                said = parse_problem(list(words))
            except CommandLineError as error:
                said = "" if _is_of_a_file(str(error)) else str(error)
            if said:
                problems[f"{place}: {' '.join(words)}"] = said
    assert problems == {}


def _is_of_a_file(message: str) -> bool:
    """Whether a parser missed a file that the reader has and we do not."""
    return "does not exist" in message or "No such file" in message


@pytest.mark.usefixtures("at_the_root")
@pytest.mark.parametrize(
    "command",
    [
        "avcap captoin x",
        "avcap fit -c configs/tiny/lavcap.yaml --model.no_such 1",
        "avcap scenes --out x --clip 3",
        "avcap cache visual -c configs/tiny/lavcap.yaml --model.no_such 1",
        "avcap ground x.png --detecter y",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    try:
        said = parse_problem(command.split())
    except CommandLineError as error:
        said = str(error)
    assert said
    assert not _is_of_a_file(said)


# -- what is run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    """A folder with what the pages speak of: configurations, a checkpoint, clips, a picture."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "configs").symlink_to(tree.ROOT / "configs")
    system, data = tiny_lavcap(), tiny_data(scenes_root)
    trainer = tiny_trainer(folder / "made", max_steps=1, every=1, limit_val_batches=0)
    trainer.fit(system, datamodule=data)
    shutil.copy(folder / "made/checkpoints/step=1.ckpt", folder / "best.ckpt")
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(encode(numbered_frames(10), tone(1.0)[None]))
    picture = next(iter(sorted((scenes_root / "coco").rglob("*.jpg"))))
    Image.open(picture).save(folder / "scene.png")
    return folder


@pytest.fixture
def in_the_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(workspace))
    known = set(sys.modules)
    yield workspace
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(workspace)):
            del sys.modules[name]


def runs(block: Block) -> bool:
    return bool(block.title) or block.language == "python" or block.marker == "run"


PAGES_WITH_CODE = sorted({block.page for block in BLOCKS if runs(block) and not block.marker.startswith("needs")})


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_the_code_of_a_page_runs(page: str, in_the_workspace: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in (block for block in BLOCKS if block.page == page and runs(block)):
        if block.marker.startswith("needs"):
            compile(block.text, block.place, "exec")
        elif block.title:
            (in_the_workspace / block.title).write_text(block.text + "\n", encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
        else:
            for command in block.commands():
                code, said = run(words_of(command))
                assert code == 0, f"{block.place}: {command}\n{said}"


def test_files_of_a_page_are_whole() -> None:
    for block in BLOCKS:
        if block.language == "yaml":
            assert yaml.safe_load(block.text), block.place
        elif block.language == "python":
            compile(block.text, block.place, "exec")


def test_blocks_are_told_apart() -> None:
    text = (
        "# A page\n\n    avcap fit -c x.yaml   # why\n    output of it\n\nText\n\n"
        "<!-- run -->\n```bash\nmake demo\n```\n\n"
        '```python title="a.py"\nimport os\n```\n\n'
        "<!-- needs: a GPU -->\n    import torch\n\n    torch.cuda.init()\n\n"
        "    images/\n      a.jpg\n- a list\n    that goes on\n"
    )
    found = [(b.line, b.language, b.marker, b.title) for b in blocks_of(text, "p.md")]
    assert found == [
        (3, "bash", "", ""),
        (10, "bash", "run", ""),
        (14, "python", "", "a.py"),
        (18, "python", "needs: a GPU", ""),
    ]
    assert next(blocks_of(text, "p.md")).commands() == ["avcap fit -c x.yaml   # why"]
    assert words_of("AVCAP_DATA=x python -m avcap_zoo fit -c a.yaml | tail") == ["avcap", "fit", "-c", "a.yaml"]


def test_pictures_are_small() -> None:
    pictures = {path.name: path.stat().st_size for path in (tree.ROOT / "docs").glob("*.png")}
    assert {"grounded.png", "lavcap_inside.png"} <= pictures.keys()
    assert {name: size for name, size in pictures.items() if size > 200_000} == {}


# -- the site -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = util.spec_from_file_location("docs_generate", tree.ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_has_every_verb(generate: ModuleType) -> None:
    page = generate.commands_page()
    for name, verb in AVCAP_VERBS.items():
        assert f"\n## {name}\n" in page
        assert verb.summary in page
    for told in ("--ckpt_path", "--picture FILE", "--splits", "--model.help zeraucap", "warmup_start_share"):
        assert told in page


def test_the_page_of_weights_has_every_entry(generate: ModuleType) -> None:
    page = generate.weights_page()
    for entry in yaml.safe_load((tree.ROOT / "checkpoints/manifest.yaml").read_text(encoding="utf-8"))["weights"]:
        assert entry["licence"] in page
        assert str(entry.get("hub_id") or entry["file"]) in page


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    import subprocess

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    assert (tmp_path / "site/systems/lavcap.html").is_file()
