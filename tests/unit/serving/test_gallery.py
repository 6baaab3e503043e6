from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avcap_zoo.errors import DataError
from avcap_zoo.serving.gallery import Gallery
from avcap_zoo.systems.captions import Explanation

PICTURE = np.full((4, 6, 3), 9, np.uint8)


def test_each_kind_of_explanation_gets_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "new/why"
    Gallery(folder).add(
        [
            Explanation("clips/a.mp4", "a <dog>", PICTURE),
            Explanation("b", "words", page="<p>inner</p>", text="step 1 & 2"),
            Explanation("c", "nothing to show"),
        ]
    )
    with Image.open(folder / "clips_a.mp4.png") as picture:
        assert picture.size == (6, 4)
    assert "<p>inner</p>" in (folder / "b.html").read_text()
    assert (folder / "b.txt").read_text() == "step 1 & 2\n"
    assert not list(folder.glob("c.*"))
    index = (folder / "index.html").read_text()
    assert "a &lt;dog&gt;" in index
    assert 'src="clips_a.mp4.png"' in index
    assert 'href="b.html"' in index
    assert "step 1 &amp; 2" in index
    assert "nothing to show" in index


def test_a_gallery_grows_over_several_runs(tmp_path: Path) -> None:
    Gallery(tmp_path).add([Explanation("a", "first", PICTURE)])
    later = Gallery(tmp_path)
    later.add([Explanation("b", "second", PICTURE), Explanation("a", "better")])
    index = (tmp_path / "index.html").read_text()
    assert "2 captions" in index
    assert "second" in index
    assert "better" in index
    assert "first" not in index


def test_ids_that_look_alike_get_files_of_their_own(tmp_path: Path) -> None:
    ids = ["a/b", "a_b", "a?b", "index", "A_B", "\u65e5\u672c", "x" * 300]
    Gallery(tmp_path).add([Explanation(clip_id, "c", PICTURE) for clip_id in ids])
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert len({name.lower() for name in pictures}) == len(ids)
    assert max(map(len, pictures)) < 110
    index = (tmp_path / "index.html").read_text()
    assert all(f'src="{name}"' in index for name in pictures)


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text("not json\n")
    with pytest.raises(DataError, match=r"clips\.jsonl is damaged"):
        Gallery(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write explanations to"):
        Gallery(tmp_path / "file")
