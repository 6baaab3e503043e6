"""What a caption of a picture says is read back, and what is right of it is counted."""

from __future__ import annotations

import pytest

from avcap_zoo.data_modules.scenes.picture_reading import ObjectSaid, count_details, read_picture_caption
from avcap_zoo.data_modules.scenes.scene import sample_scene, still_captions

WHOLE = "An orange dog at the top left and a red car at the bottom right on a pale blue background."


def totals(caption: str, whole: str) -> tuple[int, int, int]:
    details = count_details(caption, whole).values()
    return sum(d.told for d in details), sum(d.right for d in details), sum(d.all for d in details)


def test_every_caption_of_the_grammar_is_read() -> None:
    for index in range(150):
        scene = sample_scene(0, "val", index, relation="single" if index % 3 == 0 else "while")
        *terse, whole = still_captions(scene, scene.duration_s / 2)
        for caption in terse:
            assert read_picture_caption(caption).grammatical, caption
            told, right, there = totals(caption, whole)
            assert 0 < told == right < there, caption
        told, right, there = totals(whole, whole)
        assert told == right == there


def test_objects_colours_places_and_background_are_told() -> None:
    said = read_picture_caption("a picture of a dog with a red car at the top left on a pale blue background.")
    assert said.objects == (ObjectSaid("dog"), ObjectSaid("car", "red", "top left"))
    assert said.background == "blue"


@pytest.mark.parametrize(
    ("caption", "details"),
    [
        ("a dog.", (1, 1)),
        ("a blue dog at the top left.", (3, 2)),
        ("a red bird and a red car on a pale pink background.", (5, 2)),
        ("a dog and a dog.", (2, 1)),
        ("red dog bottom left pale blue background", (4, 2)),
        ("", (0, 0)),
    ],
)
def test_what_is_right_is_counted(caption: str, details: tuple[int, int]) -> None:
    assert totals(caption, WHOLE) == (*details, 7)


def test_kinds_are_counted_each() -> None:
    found = count_details("a blue dog at the top left and a car on a pale blue background.", WHOLE)
    counted = {kind: (details.told, details.right, details.all) for kind, details in found.items()}
    assert counted == {"picture": (2, 2, 2), "colour": (1, 0, 2), "place": (1, 1, 2), "background": (1, 1, 1)}


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog",
        "a orange dog.",
        "an red dog.",
        "a dog red.",
        "dog and car.",
        "a dog and and a car.",
        "a dog at the top.",
        "a dog on a pale blue background on a pale blue background.",
        "there is a picture of a dog.",
    ],
)
def test_what_is_no_sentence_of_the_grammar(caption: str) -> None:
    assert not read_picture_caption(caption).grammatical


@pytest.mark.parametrize(
    ("caption", "listed"),
    [
        ("orange dog top left red car bottom right pale blue background", True),
        ("dog", True),
        ("orange dog top left red", False),
        ("a dog", False),
        (WHOLE, False),
        ("", False),
    ],
)
def test_lists_of_keywords_are_known(caption: str, listed: bool) -> None:
    said = read_picture_caption(caption)
    assert (said.listed, said.grammatical) == (listed, caption == WHOLE)
