"""What `avcap doctor` found, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "PROBLEM"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        state: `PROBLEM` is what keeps a run from working; `note` is what someone may want to mend.
        what: the thing that was looked at.
        text: what was found.
        remedy: the command that mends it, or what to do.
    """

    state: State
    what: str
    text: str
    remedy: str = ""


def show(title: str, findings: Sequence[Finding]) -> str:
    """A heading and a line for each finding; the remedy stands below its finding."""
    width = max((len(finding.what) for finding in findings), default=0)
    lines = [title]
    for finding in findings:
        lines.append(f"  {finding.state:<7}  {finding.what:<{width}}  {finding.text}".rstrip())
        if finding.remedy:
            lines.append(f"{'':<11}{'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)
