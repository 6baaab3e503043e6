"""Instruction sets made from annotations: sentences about VGGSS' labels, and long descriptions of Clotho's sounds.

Neither is published with what made it, so the sentences and the question to the language model are ours. Who answers
the question is not settled here: a chat model, or people, or a service whose answers come as a file.

Source: BuboGPT (arXiv 2307.08581), section 4: VGGSS by "a group of fixed templates", Clotho-Detail by GPT-4.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from avcap_zoo.data_modules.annotations import Problems
from avcap_zoo.data_modules.clotho import PARTS, ClothoDataModule
from avcap_zoo.data_modules.files import json_bytes, write_error, write_file
from avcap_zoo.data_modules.instructions import SOURCE_SENTENCES
from avcap_zoo.data_modules.records import SplitIndex
from avcap_zoo.data_modules.vggss import read_vggss
from avcap_zoo.errors import DataError, first_line

DESCRIPTION_SYSTEM = "You describe sounds for people who cannot hear them."
DESCRIPTION_QUESTION = (
    "Several people heard the same sound, and each wrote one sentence about it:\n{}\n"
    "Write one description of this sound, of about fifty words, in plain full sentences. Say what makes the sounds, "
    "in what order or how often they come, how loud and how near they are. Use only what the sentences say, and what "
    "follows from it. Where they disagree, keep to what most of them say. Write the description alone."
)
_SPACES = re.compile(r"\s+")


def source_sentences(root: Path, *, seed: int = 0) -> tuple[list[dict[str, str]], SplitIndex]:
    """An entry of VGGSS-Instruction for every clip of vggss.json: one of our sentences around its class label.

    Args:
        root: folder of vggss.json.
        seed: which sentence a clip gets depends on this and on the clip alone.

    Returns:
        {"audio_id", "image_id", "caption"} in the order of the file, and what of it was left out.

    Raises:
        DataError: the file is missing or malformed.
    """
    index = SplitIndex()
    entries = []
    for clip in read_vggss(root / "vggss.json", index):
        choice = zlib.crc32(f"{seed} {clip.name}".encode()) % len(SOURCE_SENTENCES)
        caption = SOURCE_SENTENCES[choice].format(clip.label)
        entries.append({"audio_id": clip.name, "image_id": clip.name, "caption": caption})
    return entries, index


def clotho_captions(root: Path, parts: Sequence[str]) -> dict[str, list[str]]:
    """The captions of Clotho's clips, whether or not their sounds are there.

    Args:
        root: folder of Clotho, see `ClothoDataModule`.
        parts: of `development`, `validation`, `evaluation`.

    Returns:
        Captions by clip id.

    Raises:
        DataError: captions are missing or malformed, or two parts have a clip of one name.
    """
    split_of = {part: split for split, part in PARTS.items()}
    captions: dict[str, list[str]] = {}
    for part in parts:
        found = ClothoDataModule(str(root)).captions_of(split_of[part])
        if twice := found.keys() & captions.keys():
            raise DataError(f"{root}: the parts {', '.join(parts)} share the clip {min(twice)}")
        captions |= found
    return captions


def description_question(captions: Sequence[str]) -> list[dict[str, str]]:
    """What a chat model is asked about one sound.

    Args:
        captions: of the sound.

    Returns:
        {"role", "content"}: system, user.
    """
    listed = "\n".join(f"- {caption}" for caption in captions)
    return [
        {"role": "system", "content": DESCRIPTION_SYSTEM},
        {"role": "user", "content": DESCRIPTION_QUESTION.format(listed)},
    ]


def write_questions(path: Path, captions: Mapping[str, Sequence[str]]) -> None:
    """One JSON line a clip, {"id", "messages"}, for who answers elsewhere.

    Raises:
        DataError: the file cannot be written.
    """
    lines = (
        json.dumps({"id": clip_id, "messages": description_question(texts)}, ensure_ascii=False)
        for clip_id, texts in captions.items()
    )
    write_file(path, "".join(f"{line}\n" for line in lines).encode())


def read_answers(path: Path, known: Iterable[str], *, by: str | None = None) -> dict[str, str]:
    """Answers from JSON lines {"id", "answer"}; of several for one clip the last counts.

    Args:
        path: the file. A last line that a kill cut short is passed over.
        known: the clips that were asked about.
        by: the model that must have written them, under the key `by`; None = anybody.

    Returns:
        Text by clip id, white space made plain; empty answers are left out.

    Raises:
        DataError: no such file, a line that is no such object, an id that nobody asked about, or another model.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; avcap build clotho-detail --questions writes what to answer"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    problems, clips = Problems(path), set(known)
    *lines, rest = text.split("\n")
    answers: dict[str, str] = {}
    for number, line in enumerate([*lines, rest], 1):
        place = f"line {number}"
        try:
            item = json.loads(line or "null")
        except json.JSONDecodeError as error:
            if number <= len(lines):
                problems.add(place, f"is no JSON: {error.msg}")
            continue
        if item is None:
            continue
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("id", "answer")):
            problems.add(place, "wanted an object with the texts id and answer")
        elif item["id"] not in clips:
            problems.add(place, f"id {item['id']!r} is none of the clips that are asked about")
        elif by is not None and item.get("by") != by:
            problems.add(place, f"was answered by {item.get('by')!r}, not by {by!r}; give another --out")
        elif answer := _SPACES.sub(" ", item["answer"]).strip():
            answers[item["id"]] = answer
    problems.raise_any()
    return answers


class AnswerFile:
    """Answers of one model in the form that `read_answers` takes, written as they come and taken up again.

    Args:
        path: the file; what it holds of this model's answers is kept.
        known: the clips that are asked about.
        by: the model.

    Attributes:
        answers: text by clip id.

    Raises:
        DataError: the file is there and is not this model's, or cannot be written.
    """

    def __init__(self, path: Path, known: Iterable[str], by: str) -> None:
        self.path, self.by = path, by
        self.answers = read_answers(path, known, by=by) if path.exists() else {}
        lines = map(self._line, self.answers, self.answers.values())
        write_file(path, "".join(lines).encode())  # without a line cut short

    def add(self, answers: Mapping[str, str]) -> None:
        """Keep further answers; empty ones are asked for again next time.

        Raises:
            DataError: the file cannot be written.
        """
        spoken = {clip_id: _SPACES.sub(" ", answer).strip() for clip_id, answer in answers.items()}
        kept = {clip_id: answer for clip_id, answer in spoken.items() if answer}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(map(self._line, kept, kept.values()))
        except OSError as error:
            raise write_error(self.path, error) from error
        self.answers |= kept

    def _line(self, clip_id: str, answer: str) -> str:
        return json.dumps({"id": clip_id, "answer": answer, "by": self.by}, ensure_ascii=False) + "\n"


def detail_entries(captions: Mapping[str, Sequence[str]], answers: Mapping[str, str]) -> list[dict[str, str]]:
    """Entries of Clotho-Detail, {"audio_id", "caption"}, for the clips that have an answer."""
    return [{"audio_id": clip_id, "caption": answers[clip_id]} for clip_id in captions if clip_id in answers]


def write_annotations(path: Path, entries: Sequence[Mapping[str, str]]) -> None:
    """The published form: one object with the list `annotations`.

    Raises:
        DataError: the file cannot be written.
    """
    write_file(path, json_bytes({"annotations": list(entries)}))
