"""How a caption came about: its keywords, and the candidates of each step, for a terminal, as a page and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.decoding.guided import TraceStep
from avcap_zoo.systems.captions import Explanation
from avcap_zoo.systems.zeraucap.model import GuidedCaption
from avcap_zoo.systems.zeraucap.step_picture import ShownCandidate, draw_steps

NUM_SHOWN = 5
_COLUMNS = ("step", "", "candidate", "LM probability", "similarity", "score")
_WIDEST = 24


@dataclass
class CandidateRow:
    """One candidate of one step.

    Attributes:
        step: counted from 1.
        chosen: whether it was taken.
        token: its text; quoted when that is not visible.
        lm_prob: the language model's probability.
        similarity: cosine of sound and text so far with it; None without guidance.
        score: what it was ranked by.
    """

    step: int
    chosen: bool
    token: str
    lm_prob: float
    similarity: float | None
    score: float

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of the columns."""
        similarity = "-" if self.similarity is None else f"{self.similarity:.3f}"
        mark = ">" if self.chosen else ""
        return str(self.step), mark, self.token, f"{self.lm_prob:.3f}", similarity, f"{self.score:.3f}"


def explain_caption(clip: GuidedCaption, tokenizer: Any) -> Explanation:
    """Show how a caption came about.

    Args:
        clip: with a trace.
        tokenizer: of the language model.

    Returns:
        `text`: keywords, prompt and a table of the best candidates of each step. `page`: the same as HTML. `picture`:
        the candidates as bars; None where nothing was written.
    """
    steps = [list(candidate_rows(number, step, tokenizer)) for number, step in enumerate(clip.text.trace or [], 1)]
    rows = [row for step in steps for row in step]
    named = list(zip(clip.keywords, clip.similarities, strict=True))
    reason = "end token" if clip.text.stop == "end_token" else "decoding_length reached"
    return Explanation(
        clip.clip_id,
        clip.caption,
        picture=_picture(clip, steps) if steps else None,
        text="\n".join(
            [
                f"caption   {clip.caption}",
                f"keywords  {', '.join(f'{keyword} {cosine:.3f}' for keyword, cosine in named) or 'none'}",
                f"prompt    {clip.prompt}",
                *_table_lines(rows),
                f"stopped: {reason}",
            ]
        ),
        page=_page(clip, named, rows, reason),
    )


def candidate_rows(number: int, step: TraceStep, tokenizer: Any) -> Iterator[CandidateRow]:
    """The best candidates of a step, best first; the chosen one is among them.

    Args:
        number: of the step, from 1.
        step: the decision.
        tokenizer: of the language model.
    """
    for index in step.best(NUM_SHOWN):
        similarity = step.similarities[index] if step.similarities else None
        token = _shown(tokenizer.decode([step.token_ids[index]], clean_up_tokenization_spaces=False))
        yield CandidateRow(number, index == step.chosen, token, step.lm_probs[index], similarity, step.scores[index])


def _shown(token: str) -> str:
    visible = token.strip()
    return visible[:_WIDEST] if visible.isprintable() and visible else repr(token)[:_WIDEST]


def _table_lines(rows: list[CandidateRow]) -> list[str]:
    """Aligned columns; the number of a step stands before its first candidate only."""
    table = [_COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_COLUMNS))]
    first = [True, *(place == 0 or row.step != rows[place - 1].step for place, row in enumerate(rows))]
    lines: list[str] = []
    for (number, mark, token, *values), is_first in zip(table, first, strict=True):
        cells = [(number if is_first else "").rjust(widths[0]), mark.rjust(1), token.ljust(widths[2])]
        cells += [value.rjust(width) for value, width in zip(values, widths[3:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _picture(clip: GuidedCaption, steps: list[list[CandidateRow]]) -> NDArray[np.uint8]:
    named = f"keywords: {', '.join(clip.keywords)}" if clip.keywords else ""
    shown = [[ShownCandidate(row.token, row.score, row.chosen) for row in step] for step in steps]
    return draw_steps(clip.caption, named, shown)


def _page(clip: GuidedCaption, named: list[tuple[str, float]], rows: list[CandidateRow], reason: str) -> str:
    keywords = "".join(f"<li>{escape(keyword)} <small>{cosine:.3f}</small></li>" for keyword, cosine in named)
    body = []
    for row in rows:
        cells = row.cells()
        tag = "th" if row.chosen else "td"
        body.append(
            "<tr>"
            + "".join(f"<{tag} align={'left' if place == 2 else 'right'}>{escape(cell)}</{tag}>"
                      for place, cell in enumerate(cells) if place != 1)
            + "</tr>"
        )  # fmt: skip
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS if name)
    return (
        f"<h1>{escape(clip.caption)}</h1><p><small>{escape(clip.clip_id)}</small></p>"
        f"<h2>Keywords nearest to the sound</h2><ul>{keywords or '<li>none</li>'}</ul>"
        f"<h2>Prompt</h2><pre>{escape(clip.prompt)}</pre>"
        f"<h2>The best candidates of each step</h2><p>The chosen one is bold. Stopped: {reason}.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
