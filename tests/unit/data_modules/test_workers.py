from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import is_running

SCRIPT = """
import sys
from pathlib import Path
from avcap_zoo.data_modules.workers import run_in_workers
from tests.unit.data_modules.test_workers import stay

folder = Path(sys.argv[1])
list(run_in_workers(stay, [folder / "a", folder / "b"], 2, writes_to=folder, option="--workers 1"))
"""


def stay(file: Path) -> None:
    """Write down which process this is, and do not come to an end."""
    part = file.with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(file)
    time.sleep(600)


@pytest.mark.skipif(os.name != "posix", reason="processes are looked for the POSIX way")
def test_workers_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)]) as parent:
        files = [tmp_path / name for name in ("a", "b")]
        deadline = time.monotonic() + 120
        while not all(file.is_file() for file in files):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = [int(file.read_text()) for file in files]
        assert all(map(is_running, workers))
        parent.kill()
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "a worker outlived the process that started it"
        time.sleep(0.05)
