"""Mixtures of instruction sets, on small files of their own and on the shared scenes."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avcap_zoo.data_modules.instructions import (
    QUESTIONS,
    UNRELATED,
    InstructionsDataModule,
    InstructionSet,
    Mixture,
    NegativeSettings,
    relatedness,
    unrelated_pair,
)
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords
from avcap_zoo.data_modules.scenes.events import PICTURES, SOUNDS, SOUNDS_OF_PICTURE
from avcap_zoo.data_modules.scenes.instructions import (
    FACT_QUESTION,
    HEARD,
    QUESTION,
    RELATED,
    SceneInstructionsDataModule,
    words_in,
)
from avcap_zoo.errors import ConfigError, DataError

SETS = {
    "align": InstructionSet("alignment", 3, ("align/filter_cap.json",), "align"),
    "llava": InstructionSet("llava", 6, ("llava/a.json", "llava/b.json"), "coco"),
    "clotho": InstructionSet("clotho_detail", 2, ("clotho/Clotho-detail-annotation.json",), "clotho"),
    "neg": InstructionSet("negatives", 1, pictures="align", sounds="clotho"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    """Four pictures, six questions in two files, and the generated sounds of Clotho."""
    root = tmp_path_factory.mktemp("instructions")
    for folder in ("align/image", "coco/train2014", "llava"):
        (root / folder).mkdir(parents=True)
    (root / "clotho").symlink_to(scenes_root / "clotho")
    picture = Image.new("RGB", (20, 10), (200, 10, 10))
    captions = []
    for number in range(4):
        picture.save(root / f"align/image/{number}.jpg")
        captions.append({"image_id": str(number), "caption": f'A "red" wall, number {number}.'})
    (root / "align/filter_cap.json").write_text(json.dumps({"annotations": captions}))
    picture.save(root / "coco/train2014/COCO_train2014_000000000007.jpg")
    turns = [{"from": "human", "value": "<image>\nWhat is {it}?"}, {"from": "gpt", "value": "A wall (red)."}]
    for name in ("a", "b"):
        item = {"id": "000000000007", "image": "000000000007.jpg", "conversations": turns * 3}
        (root / f"llava/{name}.json").write_text(json.dumps([item]))
    return root


def module(root: Path, **options: Any) -> InstructionsDataModule:
    settings = {"sets": SETS, "batches_per_epoch": 40, "batch_size": 4, "image_size_px": 16, **options}
    return InstructionsDataModule(str(root), **settings)


def mixture(root: Path, **options: Any) -> Mixture:
    records = module(root, **options).records("train")
    assert isinstance(records, Mixture)
    return records


def test_the_same_seed_and_epoch_give_the_same_clips(root: Path) -> None:
    def drawn(seed: int, epoch: int) -> list[tuple[str, str | None, list[str]]]:
        found = mixture(root, seed=seed)
        clips = [found.draw(epoch, position) for position in range(40)]
        return [(clip.clip_id, clip.instruction, clip.captions) for clip in clips]

    assert drawn(0, 1) == drawn(0, 1)
    assert drawn(0, 1) != drawn(0, 2)
    assert drawn(0, 1) != drawn(1, 1)


def test_sets_come_in_their_ratios_one_to_a_batch(root: Path) -> None:
    found = mixture(root, batches_per_epoch=3000)
    counts = Counter(found.set_of(0, position).name for position in range(0, len(found), 4))
    for name, wanted in SETS.items():
        assert counts[name] / 3000 == pytest.approx(wanted.ratio / 12, abs=0.03)
    assert all(len({found.set_of(0, 4 * batch + n).name for n in range(4)}) == 1 for batch in range(50))
    mixed = mixture(root, one_set_per_batch=False)
    assert any(len({mixed.set_of(0, 4 * batch + n).name for n in range(4)}) > 1 for batch in range(10))


def test_questions_and_answers_of_each_kind(root: Path) -> None:
    found = mixture(root)
    kinds: dict[str, list[ClipRecord]] = {}
    for position in range(len(found)):
        kinds.setdefault(found.set_of(0, position).name, []).append(found.draw(0, position))
    assert {clip.instruction for clip in kinds["align"]} <= set(QUESTIONS["pictures"])
    assert all('"red"' in clip.captions[0] for clip in kinds["align"])  # left as published
    assert {clip.instruction for clip in kinds["clotho"]} <= set(QUESTIONS["sounds"])
    assert all("What is {it}?" in (clip.instruction or "") for clip in kinds["llava"])
    assert all(clip.captions == ["A wall (red)."] for clip in kinds["llava"])
    for clip in kinds["neg"]:
        assert clip.audio is not None
        assert clip.visual is not None
        assert "A red wall, number" in clip.captions[0]
        assert clip.captions[0].startswith(UNRELATED) or "related" not in (clip.instruction or "")
    bare = mixture(root, questions=False)
    asked = {n: bare.draw(0, n).instruction for n in range(len(bare)) if bare.set_of(0, n).name in {"align", "clotho"}}
    assert set(asked.values()) == {None}


@pytest.mark.parametrize("one_set", [True, False])
def test_batches_of_all_kinds(root: Path, one_set: bool) -> None:
    data = module(root, one_set_per_batch=one_set, batches_per_epoch=6, batch_size=8)
    kinds = set()
    for batch in data.train_dataloader():
        assert batch.waveform is not None
        assert batch.num_samples is not None
        assert batch.frame_mask is not None
        assert batch.instruction is not None
        assert len(batch) == 8
        kinds |= set(zip((batch.num_samples > 0).tolist(), batch.frame_mask[:, 0].tolist(), strict=True))
    assert (False, False) not in kinds
    assert len(kinds) > 1


def test_labels_become_sentences_of_ours(scenes_root: Path) -> None:
    sets = {"vggss": InstructionSet("vggss_labels", media="vggss")}
    data = module(scenes_root, sets=sets, batches_per_epoch=2)
    labels = {box["label"] for record in data.read_split("train").records for box in record.objects or []}
    for batch in data.train_dataloader():
        assert batch.frames is not None
        assert batch.waveform is not None
        for question, answer in zip(batch.instruction or [], batch.caption, strict=True):
            assert question in QUESTIONS["pairs"]
            assert any(label in answer and "{}" not in answer for label in labels)


def test_what_may_belong_together() -> None:
    picture = ClipRecord("a", ["A brown dog sleeps on a wooden porch."], visual="a.jpg")
    sound = ClipRecord("b", ["A dog barks on the porch of a wooden house."], audio="b.wav")
    assert relatedness(picture, sound) == 2  # porch, wooden
    assert relatedness(picture, ClipRecord("a", ["Rain."], audio="a.wav")) == math.inf
    shown = ClipRecord("c", ["x"], visual="c.mp4", sounds=[{"label": "bark"}])
    heard = ClipRecord("d", ["y"], audio="d.wav", sounds=[{"label": "bark"}, {"label": "bell"}])
    assert relatedness(shown, heard) == math.inf
    assert relatedness(shown, ClipRecord("d", ["y"], audio="d.wav", sounds=[{"label": "bell"}])) == 0


def test_the_least_related_sound_is_taken() -> None:
    picture = ClipRecord("a", ["brown wooden quiet porch"], visual="a.jpg")
    near = ClipRecord("b", ["brown wooden quiet porch creaks"], audio="b.wav")
    less = ClipRecord("c", ["brown wooden porch"], audio="c.wav")
    rng = np.random.default_rng(0)
    assert unrelated_pair(picture, PackedRecords([near, less]), rng, NegativeSettings()).audio == "c.wav"
    with pytest.raises(DataError, match="50 sounds in a row belong to the picture of a"):
        unrelated_pair(picture, PackedRecords([ClipRecord("a", ["x"], audio="a.wav")]), rng, NegativeSettings())


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({}, "sets is empty"),
        ({"x": InstructionSet("alignmnt")}, "reader is 'alignmnt', wanted one of alignment"),
        ({"x": InstructionSet("alignment", 0)}, "sets.x.ratio is 0"),
        ({"x": InstructionSet("negatives", pictures="y", sounds="y")}, "sets.x: negatives need"),
    ],
)
def test_wrong_sets_are_refused(root: Path, sets: dict[str, InstructionSet], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        module(root, sets=sets)


def test_what_is_not_there_is_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test split"):
        module(root).read_split("test")
    with pytest.raises(DataError, match="filter_cap"):
        module(tmp_path).read_split("train")
    with pytest.raises(DataError, match="needs files"):
        module(root, sets={"x": InstructionSet("alignment")}).read_split("train")
    (tmp_path / "f.json").write_text(json.dumps({"annotations": [{"image_id": "1", "caption": "A."}]}))
    with pytest.raises(DataError, match="nothing of the set x"):
        module(tmp_path, sets={"x": InstructionSet("alignment", files=("f.json",))}).read_split("train")


SCENE_SETS = {
    "pictures": InstructionSet("scene_pictures"),
    "sounds": InstructionSet("scene_sounds"),
    "pairs": InstructionSet("scene_pairs"),
    "unrelated": InstructionSet("negatives", pictures="pictures", sounds="sounds"),
}


def scenes(root: Path, **options: Any) -> SceneInstructionsDataModule:
    sizes = {"num_train": 24, "num_val": 6, "num_test": 6, "batches_per_epoch": 4, "batch_size": 4}
    settings = {"sets": SCENE_SETS, "image_size_px": 16, "one_set_per_batch": False, **sizes, **options}
    return SceneInstructionsDataModule(str(root), **settings)


def test_scenes_as_instructions(scenes_root: Path) -> None:
    data = scenes(scenes_root)
    data.prepare_data()
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    assert {question for batch in batches for question in batch.instruction or []} > {QUESTION}
    assert all(batch.waveform is not None and batch.frames is not None for batch in batches)


def test_no_scene_of_a_negative_shows_what_is_heard(scenes_root: Path) -> None:
    data = scenes(scenes_root)
    index = data.read_split("test")
    labels = {record.clip_id: record for record in data.labelled_clips.read_split("test").records}
    pairs = [record for record in index.records if "+" not in record.clip_id]
    negatives = [record for record in index.records if "+" in record.clip_id]
    assert len(pairs) == len(negatives) > 0
    assert {record.instruction for record in index.records} == {QUESTION}
    for record in negatives:
        picture, sound = record.clip_id.split("+")
        shown = record.captions[0].split("picture is of")[1].split("the sound")[0]
        heard = {item["label"] for item in labels[sound].sounds or []}
        seen = [item["label"] for item in labels[picture].objects or [] if f" {item['label']}" in shown]
        assert seen
        assert not any(SOUNDS_OF_PICTURE[label] & heard for label in seen)
        assert record.captions[0].startswith("They seem unrelated. ")
    again = scenes(scenes_root).read_split("test")
    assert [record.clip_id for record in again.records] == [record.clip_id for record in index.records]
    assert len(scenes(scenes_root, evaluate_negatives=False).read_split("val").records) < len(
        scenes(scenes_root).read_split("val").records
    )


def test_pairs_tell_all_that_is_seen_and_heard(scenes_root: Path) -> None:
    data = scenes(scenes_root)
    labels = {record.clip_id: record for record in data.labelled_clips.read_split("test").records}
    pairs = [record for record in data.read_split("test").records if "+" not in record.clip_id]
    for record in pairs:
        answer = record.captions[0]
        assert answer.startswith(RELATED)
        heard = {HEARD[item["label"]] for item in labels[record.clip_id].sounds or []}
        assert set(words_in(answer, HEARD.values())) == heard
        assert set(words_in(answer, PICTURES)) <= {item["label"] for item in labels[record.clip_id].objects or []}
        assert any(HEARD[s] in heard for seen in words_in(answer, PICTURES) for s in SOUNDS_OF_PICTURE[seen])


def test_every_sound_has_a_name_that_is_no_picture() -> None:
    assert HEARD.keys() == set(SOUNDS)
    assert len({*HEARD.values(), *PICTURES}) == len(SOUNDS) + len(PICTURES)


def test_dialogues_tell_in_words_what_their_answers_say(scenes_root: Path) -> None:
    data = scenes(scenes_root, sets={"sounds": SCENE_SETS["sounds"]})
    made = data.dialogues(300, 0)
    assert made == data.dialogues(300, 0)
    sound_of = {word: sound for sound, word in HEARD.items()}
    verdicts: Counter[bool] = Counter()
    for dialogue in made:
        seen, heard = dialogue.told.get("visual", []), dialogue.told.get("audio", [])
        if dialogue.question == FACT_QUESTION:
            assert (len(seen), len(heard)) == (1, 1)
        else:
            assert words_in(dialogue.answer, PICTURES) == seen
            assert words_in(dialogue.answer, HEARD.values()) == heard
        if seen and heard:
            belong = any(sound_of[word] in SOUNDS_OF_PICTURE[thing] for word in heard for thing in seen)
            assert dialogue.answer.startswith(RELATED.strip() if belong else UNRELATED.strip())
            verdicts[belong] += 1
    assert min(verdicts.values()) > 60
    assert {len(dialogue.told) for dialogue in made} == {1, 2}


def test_draws_do_not_depend_on_what_was_drawn_before(root: Path) -> None:
    found = mixture(root)
    order = np.random.default_rng(0).permutation(30)
    shuffled = {int(position): found.draw(0, int(position)).clip_id for position in order}
    assert shuffled == {position: found.draw(0, position).clip_id for position in range(30)}
