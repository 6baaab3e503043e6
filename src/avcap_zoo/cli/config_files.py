"""YAML files with the place of every value, so that a message can name file and line.

Used by the front, which answers for broken files before torch is imported, and by `explain`, which looks for the
value that the parser refused. jsonargparse reads the files once more on its own: what is accepted is its decision.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from avcap_zoo.cli.usage import CommandLineError, closest

Scalar: TypeAlias = "str | int | float | bool | None"
Content: TypeAlias = "dict[str, Located] | list[Located] | Scalar"


PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
MOST_VALUES = 100_000


class ScalarLoader(yaml.SafeLoader):
    """SafeLoader that reads `1e-4` as a number and leaves dates as text, as jsonargparse does."""


ScalarLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
ScalarLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)$"), list("-+0123456789")
)


@dataclass
class Located:
    """A value of a configuration and where it stands.

    Args:
        content: a dict or list of further Located, or a scalar.
        where: `file:line`, or "command line".
        layer: which file, in the order given, counted from 0; the command line comes after them.
    """

    content: Content
    where: str
    layer: int = 0

    def plain(self) -> object:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.content, dict):
            return {key: value.plain() for key, value in self.content.items()}
        if isinstance(self.content, list):
            return [value.plain() for value in self.content]
        return self.content

    def get(self, *keys: str) -> Located | None:
        """The value below these keys, or None where one of them is missing."""
        found: Located | None = self
        for key in keys:
            found = found.content.get(key) if found is not None and isinstance(found.content, dict) else None
        return found


def read_config(path: str, layer: int = 0) -> Located:
    """Read one YAML file whose top level must be keys and values.

    Args:
        path: as the user wrote it; messages repeat it.
        layer: kept in every value, see `Located`.

    Raises:
        CommandLineError: the file is missing, unreadable, empty, no YAML, a list, or names a key twice.
    """
    file = Path(path)
    if file.is_dir():
        raise CommandLineError(f"{path} is a folder, wanted a YAML file{_file_suggestion(file)}")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommandLineError(f"{path} does not exist{_file_suggestion(file)}") from None
    except UnicodeDecodeError:
        raise CommandLineError(f"{path} is not a text file in UTF-8, wanted YAML") from None
    except OSError as error:
        raise CommandLineError(f"{path} cannot be read: {error.strerror}") from error
    located = locate(text, path, layer)
    if located is None:
        raise CommandLineError(f"{path} is empty, wanted keys such as model, data, trainer")
    if not isinstance(located.content, dict):
        kind = "a list" if isinstance(located.content, list) else f"only the value {located.content!r}"
        raise CommandLineError(f"{path} holds {kind}, wanted keys such as model, data, trainer")
    return located


def set_environment(variables: Mapping[str, str]) -> None:
    """Set the variables of a configuration's `environment`; one that is set already stays as it is."""
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))


def locate(text: str, name: str, layer: int = 0) -> Located | None:
    """Parse YAML text and keep the line of every value; None for a text without any.

    Dotted keys are unfolded (`model.lr: 1` is `model: {lr: 1}`), and the `+` of `callbacks+` is dropped.

    Raises:
        CommandLineError: no YAML, or one key twice; the message holds name, line and column.
    """
    loader = ScalarLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise CommandLineError(f"{name}: more than {MOST_VALUES:,} values, with every alias written out")
        return None if node is None else _located(loader, node, name, layer, above=())
    except RecursionError:
        raise CommandLineError(f"{name}: lists or keys within each other deeper than Python can follow") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise CommandLineError(f"{place}: not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise CommandLineError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from error
    finally:
        loader.dispose()


def merge(below: Located, above: Located) -> Located:
    """`above` laid over `below` as several `-c` are: dicts key by key, everything else replaced."""
    if not isinstance(below.content, dict) or not isinstance(above.content, dict):
        return above
    merged = dict(below.content)
    for key, value in above.content.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return Located(merged, above.where, above.layer)


def nested(keys: Sequence[str], value: Located) -> Located:
    """`value` below a chain of keys."""
    for key in reversed(keys):
        value = Located({key: value}, value.where, value.layer)
    return value


def _located(loader: ScalarLoader, node: Node, name: str, layer: int, above: tuple[int, ...]) -> Located:
    where = f"{name}:{node.start_mark.line + 1}"
    if id(node) in above:
        raise CommandLineError(f"{where}: the value contains itself")
    above = (*above, id(node))
    if not isinstance(node, ScalarNode) and node.tag not in PLAIN_TAGS:
        loader.construct_object(node, deep=True)  # raises on tags that would run code
    if isinstance(node, MappingNode):
        _refuse_twins(node, name)
        loader.flatten_mapping(node)
        unfolded = Located({}, where, layer)
        for key_node, value_node in node.value:
            value = _located(loader, value_node, name, layer, above)
            value.where = f"{name}:{key_node.start_mark.line + 1}"
            key = key_node.value if isinstance(key_node, ScalarNode) else str(loader.construct_object(key_node, True))
            unfolded = merge(unfolded, nested(key.removesuffix("+").split("."), value))
        return Located(unfolded.content, where, layer)
    if isinstance(node, SequenceNode):
        return Located([_located(loader, item, name, layer, above) for item in node.value], where, layer)
    return Located(loader.construct_object(node), where, layer)


def _size(node: Node, sizes: dict[int, int]) -> int:
    """Number of values that a node stands for, every alias written out; `sizes` holds those found so far, by id."""
    if id(node) not in sizes:
        sizes[id(node)] = 1  # for what contains itself, which is refused later
        parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts if isinstance(part, Node))
    return sizes[id(node)]


def _refuse_twins(node: MappingNode, name: str) -> None:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, ScalarNode) or key_node.value == "<<":
            continue
        line = key_node.start_mark.line + 1
        if key_node.value in seen:
            raise CommandLineError(
                f"{name}:{line}: the key {key_node.value} stands here and in line {seen[key_node.value]}, wanted once"
            )
        seen[key_node.value] = line


def _file_suggestion(missing: Path) -> str:
    folder = missing.parent
    if not folder.is_dir():
        return f"; there is no folder {folder}"
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in {".yaml", ".yml", ".json"}}
    match = closest(missing.stem, files)
    if match is not None:
        return f"; did you mean {files[match]}?"
    return f"; {folder} holds {', '.join(file.name for file in files.values())}" if 0 < len(files) <= 12 else ""
