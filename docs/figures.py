"""Make the pictures of README and docs anew: `make figures`, or `python docs/figures.py grounded lavcap ...` for some.

The small models that they need are trained first, by the configurations in configs/tiny, into runs/figures and
runs/pretrained; what is there already is not trained again. The clips are generated, and no model was trained on them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
WORK = Path("runs/figures")
LARGEST_BYTES = 200_000
PICTURE = 5
REPETITIVE = 8  # its caption says a word twice
SENTENCE = "A phone rings, a bell chimes, and the audience claps."


def grounded() -> None:
    """Masks of the things that a sentence names."""
    target = WORK / "grounded.png"
    avcap("ground", str(picture(256)), "--text", SENTENCE, "-c", "configs/tiny/bubogpt_ground.yaml",
          "--out", str(WORK / "grounded.json"), "--picture", str(target))  # fmt: skip
    keep(target, "grounded.png")


def lavcap() -> None:
    """Frames, spectrogram and transport plan."""
    checkpoint = trained("lavcap", "best.ckpt")
    keep(explained("lavcap", clip(), "--checkpoint", str(checkpoint)), "lavcap_inside.png")


def zeraucap() -> None:
    """The steps of guided decoding."""
    for name in ("clap", "caption_language"):
        pretrained(name)
    keep(explained("zeraucap", clip(), "-c", "configs/tiny/zeraucap.yaml"), "zeraucap_steps.png")


def vlrm() -> None:
    """The returns of a caption's tokens."""
    for name in ("blip2", "itm", "clip_judge"):
        pretrained(name)
    checkpoint = trained("vlrm", "last.ckpt")
    keep(explained("vlrm", picture(64, REPETITIVE), "--checkpoint", str(checkpoint)), "vlrm_returns.png")


FIGURES: dict[str, Callable[[], None]] = {"grounded": grounded, "lavcap": lavcap, "zeraucap": zeraucap, "vlrm": vlrm}


def avcap(*arguments: str) -> None:
    """Run a command of the package, and stop with it."""
    print(f"avcap {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "avcap_zoo", *arguments], check=True)


def pretrained(name: str) -> None:
    """Train what is saved as runs/pretrained/NAME, once."""
    if not list(Path("runs/pretrained").glob(f"{name}*")):
        avcap("fit", "-c", f"configs/tiny/{name}.yaml")


def trained(name: str, checkpoint: str) -> Path:
    """The checkpoint of a system, trained once."""
    folder = WORK / name
    pattern = f"version_*/checkpoints/{checkpoint}"
    if not list(folder.glob(pattern)):
        avcap("fit", "-c", f"configs/tiny/{name}.yaml", "--trainer.default_root_dir", str(folder))
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def clip() -> Path:
    """A list of one generated clip in which one thing follows another: its sound, and its video."""
    root = WORK / "scenes"
    if not root.exists():
        avcap("scenes", "--out", str(root), "--clips", "12", "--format", "audiocaps", "--seed", "7")
    rows = map(json.loads, (root / "audiocaps/annotations.jsonl").read_text(encoding="utf-8").splitlines())
    clip_id = next(row["clip_id"] for row in rows if row["relation"] not in {"single", "while"})
    video = next(root.rglob(f"{clip_id}*.mp4"))
    sound = next(path for path in root.rglob(f"{video.stem}.*") if path.suffix != ".mp4")
    row = {"id": clip_id, "audio": str(sound.resolve()), "visual": str(video.resolve())}
    (WORK / "clip.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return WORK / "clip.jsonl"


def picture(size_px: int, number: int = PICTURE) -> Path:
    """A generated picture."""
    root = WORK / f"pictures-{size_px}"
    if not root.exists():
        avcap("scenes", "--out", str(root), "--clips", "12", "--format", "coco", "--image-size", str(size_px))
    return sorted(root.rglob("COCO_train*.jpg"))[number - 1]


def explained(name: str, file: Path, *arguments: str) -> Path:
    """The picture that `avcap caption --explain` draws of one file."""
    folder, out = WORK / f"{name}-why", WORK / f"{name}.jsonl"
    shutil.rmtree(folder, ignore_errors=True)
    out.unlink(missing_ok=True)
    avcap("caption", str(file), *arguments, "--out", str(out), "--explain", str(folder))
    return next(iter(sorted(folder.glob("*.png"))))


def keep(source: Path, name: str) -> None:
    """Put a picture into docs, with fewer colours where it would be large."""
    image = Image.open(source).convert("RGB")
    image.save(DOCS / name, optimize=True)
    if (DOCS / name).stat().st_size > LARGEST_BYTES:
        image.quantize(128).save(DOCS / name, optimize=True)
    print(f"{DOCS / name}: {(DOCS / name).stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    for wanted in sys.argv[1:] or FIGURES:
        FIGURES[wanted]()
