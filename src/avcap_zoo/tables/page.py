"""What the pages of the reports share."""

from __future__ import annotations

from importlib.resources import files


def template_text(name: str) -> str:
    """A file of the folder of templates, such as the style sheet `page.css`."""
    return files("avcap_zoo.tables").joinpath(f"templates/{name}").read_text(encoding="utf-8")
