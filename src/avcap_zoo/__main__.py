"""`python -m avcap_zoo` is the command `avcap`."""

import sys

from avcap_zoo.cli.main import avcap

if __name__ == "__main__":
    sys.exit(avcap())
