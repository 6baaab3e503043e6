"""How close a system is to the official numbers: runs its parity tests and prints one row per golden case.

python benchmarks/parity_table.py lavcap
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.parity.golden import COMPARISONS, GOLDEN, Comparison  # noqa: E402


def main() -> int:
    """Run the tests, print the table; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("system", choices=sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir()))
    system = parser.parse_args().system
    code = int(pytest.main([*map(str, parity_files(system)), "-p", "no:cacheprovider"]))
    rows = sorted(COMPARISONS, key=lambda one: one.case)
    print(
        "\n| case | tensors | the one nearest its limit | tolerance (relative, absolute) | largest difference | used |"
    )
    print("|---|---|---|---|---|---|")
    for case, group in groupby(rows, key=lambda one: one.case):
        print(table_row(case, list(group)))
    return code


def parity_files(system: str) -> list[Path]:
    """The test files that read a system's golden cases."""
    files = sorted((ROOT / "tests/parity").glob("test_*.py"))
    return [path for path in files if path.stem == f"test_{system}" or f'"{system}"' in path.read_text()]


def table_row(case: str, compared: list[Comparison]) -> str:
    """One case: the tensor that uses most of its tolerance stands for all."""
    worst = max(compared, key=lambda one: one.used)
    count = len({one.tensor for one in compared})
    if worst.tolerance == (0, 0):
        return f"| {case} | {count} | all | exact | 0 | 0 % |"
    relative, absolute = worst.tolerance
    return (
        f"| {case} | {count} | {worst.tensor} | {relative:.2g}, {absolute:.2g} | {worst.difference:.2g} | "
        f"{100 * worst.used:.2g} % |"
    )


if __name__ == "__main__":
    sys.exit(main())
