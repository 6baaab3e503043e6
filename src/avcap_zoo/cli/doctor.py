"""`avcap doctor`: can this machine run, and can it run this configuration?

Exit codes: 0 yes, 1 a problem was found, 2 the command or the configuration is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from avcap_zoo.cli.findings import Finding, show
from avcap_zoo.cli.main import check_arguments
from avcap_zoo.cli.usage import VerbParser

PROG = "avcap doctor"


def main(arguments: Sequence[str]) -> int:
    """Look, print, and count the problems.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option or a configuration cannot be used as given; what is to say of the machine is said.
    """
    _, rest = _parser().parse_known_args(list(arguments))
    if rest:
        check_arguments(PROG, ["fit", *rest])
    from avcap_zoo.cli.machine_checks import machine_findings
    from avcap_zoo.cli.versions import version_lines

    found = machine_findings()
    print(show(", ".join(version_lines()), found), flush=True)
    if rest:
        of_config = _config_findings(rest)
        print(f"\n{show(' '.join(rest), of_config)}")
        found += of_config
    problems = sum(finding.state == "PROBLEM" for finding in found)
    well = "the configuration can run here" if rest else "nothing is in the way"
    print(f"\n{problems} problem(s)" if problems else f"\n{well}")
    return 1 if problems else 0


def _config_findings(arguments: Sequence[str]) -> list[Finding]:
    from avcap_zoo.cli.config_files import read_config

    files = [value for option, value in pairwise(arguments) if option in {"-c", "--config"}]
    if files and all(read_config(file).get("detector") for file in files):
        from avcap_zoo.cli.config_checks import grounding_findings

        return grounding_findings(arguments)
    from avcap_zoo.cli.config_checks import config_findings

    return config_findings(arguments)


def _parser() -> VerbParser:
    return VerbParser(
        prog=PROG,
        description="Check this machine and, with -c, whether a configuration can run on it: files, data, size, memory "
        "and time of a step. Takes the options of fit; each problem stands with what mends it. Exit code 0: none.",
        usage=f"{PROG} [-c FILE ...] [options of fit]",
        allow_abbrev=False,
    )
