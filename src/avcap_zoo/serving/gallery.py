"""Explanations as files: a picture, page or text per clip, and an index of all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from urllib.parse import quote

from avcap_zoo.data_modules.files import write_file
from avcap_zoo.errors import DataError
from avcap_zoo.systems.captions import Explanation

_LONGEST_NAME = 80
_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 1180px; padding: 32px 20px 60px; font: 16px/1.5 system-ui, sans-serif; }
article { margin: 0 0 40px; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin: 0; } small { opacity: .7; }
img { display: block; max-width: 100%; margin: 10px 0; border: 1px solid #8884; border-radius: 8px; }
pre { overflow-x: auto; padding: 12px; background: #8881; border-radius: 8px; }
"""


class Gallery:
    """A folder of explanations that grows; `index.html` shows all that were ever put into it.

    Args:
        folder: made if it does not exist.

    Raises:
        DataError: the folder cannot be made, or its list is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.list = folder / "clips.jsonl"
        self.clips: dict[str, dict[str, str]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = self.list.read_text(encoding="utf-8").splitlines() if self.list.exists() else []
            for line in lines:
                clip = json.loads(line)
                self.clips[clip["id"]] = clip
        except OSError as error:
            raise DataError(f"cannot write explanations to {folder}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.list} is damaged; remove {folder} or choose another --explain") from error

    def add(self, explanations: Sequence[Explanation]) -> None:
        """Write `<name>.png`, `.html` and `.txt`, as far as an explanation has them, and the index anew."""
        from PIL import Image

        for explanation in explanations:
            name = self._name(explanation.clip_id)
            if explanation.picture is not None:
                Image.fromarray(explanation.picture).save(self.folder / f"{name}.png", optimize=True)
            if explanation.page:
                page = _page(explanation.caption, explanation.page)
                (self.folder / f"{name}.html").write_text(page, encoding="utf-8")
            if explanation.text:
                (self.folder / f"{name}.txt").write_text(explanation.text + "\n", encoding="utf-8")
            self.clips[explanation.clip_id] = {
                "id": explanation.clip_id,
                "caption": explanation.caption,
                "name": name,
            }
        lines = "".join(json.dumps(clip, ensure_ascii=False) + "\n" for clip in self.clips.values())
        write_file(self.list, lines.encode())
        body = f"<h1>{len(self.clips)} captions</h1>" + "".join(map(self._article, self.clips.values()))
        write_file(self.folder / "index.html", _page("Captions and how they came about", body).encode())

    def _name(self, clip_id: str) -> str:
        """A file name that tells the id, different for different ids."""
        if clip_id in self.clips:
            return self.clips[clip_id]["name"]
        plain = re.sub(r"[^\w.,=-]+", "_", clip_id, flags=re.ASCII).strip("._")
        taken = {clip["name"].lower() for clip in self.clips.values()} | {"index", ""}
        if plain.lower() in taken or len(plain) > _LONGEST_NAME:
            plain = f"{plain[-_LONGEST_NAME:]}-{sha256(clip_id.encode()).hexdigest()[:8]}"
        return plain

    def _article(self, clip: dict[str, str]) -> str:
        name = clip["name"]
        parts = [f"<article><h2>{escape(clip['caption'])}</h2><small>{escape(clip['id'])}</small>"]
        if (self.folder / f"{name}.png").is_file():
            told = escape(f"What the system saw and heard: {clip['caption']}", quote=True)
            parts.append(f'<img src="{quote(name)}.png" alt="{told}" loading="lazy">')
        if (self.folder / f"{name}.html").is_file():
            parts.append(f'<p><a href="{quote(name)}.html">more</a></p>')
        if (self.folder / f"{name}.txt").is_file():
            text = (self.folder / f"{name}.txt").read_text(encoding="utf-8")
            parts.append(f"<pre>{escape(text)}</pre>")
        return "".join(parts) + "</article>\n"


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body>{body}</body></html>\n"
    )
