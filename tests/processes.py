"""Whether processes are still there, for tests that end others."""

from __future__ import annotations

import subprocess


def is_running(pid: int) -> bool:
    """Whether there is such a process; an ended one that nobody asked for its exit code does not count."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return told.returncode == 0 and not told.stdout.startswith("Z")
