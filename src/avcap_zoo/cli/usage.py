"""What the command line says to a user who mistyped: one error type, the close match, and a parser in one line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from avcap_zoo.errors import ConfigError


class CommandLineError(ConfigError):
    """The command or a configuration file cannot be used as given; `cli.main` prints it and exits with 2."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was most likely meant to be, whatever its case; None when nothing is close."""
    by_lower = {name.lower(): name for name in known}
    matches = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    matches = matches or sorted((name for name in by_lower if name.startswith(word.lower())), key=len)
    return by_lower[matches[0]] if matches else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or the whole list when it is short and nothing is close, or nothing."""
    names = sorted(set(known))
    match = closest(word, names)
    if match is not None:
        return f"; did you mean {match}?"
    if names and len(names) <= 12:
        return f"; known: {', '.join(names)}"
    return ""


class VerbParser(argparse.ArgumentParser):
    """argparse for one verb: raises instead of printing its usage, and looks at unknown options before missing ones."""

    def error(self, message: str) -> NoReturn:
        """Refuse in one line.

        Raises:
            CommandLineError: always.
        """
        raise CommandLineError(message)

    def check_options(self, arguments: Sequence[str]) -> None:
        """Refuse an option that does not exist.

        Raises:
            CommandLineError: names the option that was probably meant.
        """
        known = {option for action in self._actions for option in action.option_strings}
        for word in arguments:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in known:
                raise CommandLineError(f"no option {option}{suggestion(option, known)}")
