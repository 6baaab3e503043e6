"""Why the parser refused: the file and line, the key, what was found, what was wanted.

jsonargparse decides what is accepted; its messages lack the file and, below the first level, the class. So after a
refusal the files and the command line are laid over each other once more, in order, and compared with the signatures
of the classes they name. All problems of the first file that has any are listed.
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import types
import typing
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from avcap_zoo.cli.config_files import Located, locate, merge, nested, read_config
from avcap_zoo.cli.short_names import TABLES, dotted_path
from avcap_zoo.cli.usage import CommandLineError, suggestion
from avcap_zoo.errors import AvcapError

COMMAND_LINE = "command line"
LISTED_PROBLEMS = 8
CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}
TRAINER_LISTS = {"callbacks", "logger", "plugins"}
SHORTHAND_MODULES = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "lightning.pytorch.profilers")
"""Where jsonargparse, too, finds classes by their bare name."""


class UnknownClassError(Exception):
    """A class path leads nowhere; the message says where it breaks off."""


def explain(
    arguments: Sequence[str],
    refusal: str,
    *,
    known: Mapping[str, Any],
    bases: Mapping[str, type],
) -> str:
    """Say what is wrong with a command line that the parser refused.

    Args:
        arguments: the command line after the verb, short names expanded.
        refusal: the parser's own message, given back in short when nothing better is found.
        known: top-level key -> class whose signature its value follows, or None for a plain value.
        bases: key of a section with a class_path ("model", "data") -> class it must derive from.

    Returns:
        One line per problem.
    """
    search = _Search(known, bases)
    try:
        found = search.problems(arguments, something_is_missing="required" in refusal)
        if len(found) > LISTED_PROBLEMS:
            found[LISTED_PROBLEMS:] = [f"and {len(found) - LISTED_PROBLEMS} more"]
        return "\n  ".join(found) or _shortened(refusal)
    except CommandLineError as error:  # a file named inside a file is missing or broken
        return str(error)


class _Search:
    def __init__(self, known: Mapping[str, Any], bases: Mapping[str, type]) -> None:
        self.known = known
        self.bases = bases
        self.found: list[str] = []

    def problems(self, arguments: Sequence[str], *, something_is_missing: bool) -> list[str]:
        self._check_help(arguments)
        merged = Located({}, "")
        for layer in read_layers(arguments):
            merged = self._with_layer(merged, layer)
            self._check_top(merged)
            if self.found:
                return sorted(self.found, key=_line)
        if something_is_missing:
            self._check_complete(merged)
        return self.found

    def _check_help(self, arguments: Sequence[str]) -> None:
        for word, following in zip(arguments, [*arguments[1:], "-"], strict=True):
            option, _, name = word.partition("=")
            name = name or following
            key = option.removeprefix("--").removesuffix(".help")
            if option.endswith(".help") and key in self.bases and not name.startswith("-"):
                try:
                    import_class(name, TABLES[key])
                except UnknownClassError as error:
                    self.found.append(f"{option}: {error}")

    def _with_layer(self, merged: Located, layer: Located) -> Located:
        if not isinstance(layer.content, dict):
            return merged
        sections = {key: self._section(key, value) for key, value in layer.content.items()}
        for key in self.bases:
            old, new = merged.get(key), sections.get(key)
            if new is None or new.get("class_path") is not None:
                if old is not None and new is not None:
                    merged = _without_lost_arguments(merged, key, new)
            elif old is None or old.get("class_path") is None:
                self.found.append(
                    f"{new.where}: {key} has no class_path and no earlier -c gives one; put the file that names the "
                    f"{key} first: -c base.yaml -c overlay.yaml"
                )
        return merge(merged, Located(sections, layer.where, layer.layer))

    def _section(self, key: str, value: Located) -> Located:
        """The value of a top-level key with every shorthand for class_path and init_args written out."""
        if key not in self.bases:
            return value
        if isinstance(value.content, str):
            if not value.content.endswith((".yaml", ".yml", ".json")):
                path = Located(dotted_path(key, value.content), value.where, value.layer)
                return Located({"class_path": path}, value.where, value.layer)
            folder = Path(value.where).parent if ":" in value.where else Path()
            value = read_config(str(folder / value.content), value.layer)
        if not isinstance(value.content, dict):
            return value
        path = value.get("class_path") or Located(None, "")
        content = _with_init_args(value).content
        if isinstance(content, dict) and isinstance(path.content, str):
            content["class_path"] = Located(dotted_path(key, path.content), path.where, path.layer)
        return Located(content, value.where, value.layer)

    def _check_top(self, merged: Located) -> None:
        for key, value in _entries(merged):
            if key not in self.known:
                self.found.append(f"{value.where}: no such key {key}{suggestion(key, self.known)}")
            elif key in self.bases:
                self._check_class(value, key, self.bases[key])
            elif inspect.isclass(self.known[key]):
                self._check_arguments(self.known[key], value, key)
            else:
                self._check_value(self.known[key], value, key)

    def _check_class(self, value: Located, path: str, base: type | None) -> None:
        """A dict with a class_path: the class, then its arguments."""
        named = value.get("class_path")
        if named is None:
            if not isinstance(value.content, dict):
                self.found.append(f"{value.where}: {path}: found {shown(value)}, wanted class_path and init_args")
            return
        try:
            target = import_class(str(named.content), TABLES.get(path, {}))
        except UnknownClassError as error:
            self.found.append(f"{named.where}: {path}.class_path: {error}")
            return
        if base is not None and inspect.isclass(target) and not issubclass(target, base):
            self.found.append(f"{named.where}: {path}.class_path: {named.content} is no {base.__name__}")
            return
        for key, extra in _entries(value):
            if key not in CLASS_KEYS:
                self.found.append(f"{extra.where}: no such key {path}.{key}{suggestion(key, CLASS_KEYS)}")
        init_args = value.get("init_args")
        if target is not None and init_args is not None:
            self._check_arguments(target, init_args, f"{path}.init_args")

    def _check_arguments(self, target: Any, value: Located, path: str) -> None:
        """The keys of `value` against the signature of a class or the fields of a dataclass."""
        if not isinstance(value.content, dict):
            if value.content is not None:
                self.found.append(
                    f"{value.where}: {path}: found {shown(value)}, wanted the arguments of {target.__name__}"
                )
            return
        names = argument_names(target)
        hints = argument_hints(target)
        for key, argument in _entries(value):
            if key not in names:
                self.found.append(
                    f"{argument.where}: {path}.{key}: {target.__name__} has no such argument{suggestion(key, names)}"
                )
            else:
                self._check_value(hints.get(key, Any), argument, f"{path}.{key}")

    def _check_value(self, hint: Any, value: Located, path: str) -> None:
        if isinstance(value.content, dict):
            target = next((part for part in _parts(hint) if dataclasses.is_dataclass(part)), None)
            if value.get("class_path") is not None:
                self._check_class(_with_init_args(value), path, None)
            elif target is not None:
                self._check_arguments(target, value.get("init_args") or value, path)
            else:
                self._check_items(hint, _entries(value), value, path)
        elif isinstance(value.content, list):
            self._check_items(hint, ((str(i), item) for i, item in enumerate(value.content)), value, path)
        elif not fits(hint, value.content):
            self._refuse(hint, value, path)

    def _check_items(self, hint: Any, items: Iterator[tuple[str, Located]], value: Located, path: str) -> None:
        before = len(self.found)
        item_hints = [args[-1] for part in _parts(hint) if (args := typing.get_args(part)) and args[-1] is not Ellipsis]
        for key, item in items:
            if isinstance(item.content, dict | list):
                self._check_value(item_hints[0] if item_hints else Any, item, f"{path}.{key}")
        if len(self.found) == before and not _names_classes(value) and not fits(hint, value.plain()):
            self._refuse(hint, value, path)

    def _refuse(self, hint: Any, value: Located, path: str) -> None:
        content = value.content
        advice = f"; write {int(content)}" if isinstance(content, float) and content.is_integer() else ""
        self.found.append(f"{value.where}: {path}: found {shown(value)}, wanted {wanted(hint)}{advice}")

    def _check_complete(self, merged: Located) -> None:
        """What must be given and is not."""
        for key in self.bases:
            table, value = TABLES[key], merged.get(key)
            if value is None:
                self.found.append(
                    f"no {key} given, wanted {key}: in a -c file, or --{key} with one of {', '.join(sorted(table))}"
                )
                continue
            named = value.get("class_path")
            if named is None:
                continue
            target = import_class(str(named.content), table)
            missing = missing_arguments(target, value.get("init_args"))
            self.found += [
                f"{key}.init_args.{name} is missing, {target.__name__} needs it (--{key}.{name})" for name in missing
            ]


def read_layers(arguments: Sequence[str]) -> Iterator[Located]:
    """The files and options of a command line in their order, each a tree that lies over the ones before."""
    words = iter(enumerate(arguments))
    for layer, word in words:
        option, equals, value = word.partition("=")
        if word.startswith("-c"):
            option, equals, value = "--config", word[2:], word[2:].removeprefix("=")
        if not option.startswith("--") or option in {"--help", "--print_config"}:
            continue
        if not equals:
            following = arguments[layer + 1] if layer + 1 < len(arguments) else "--"
            if following.startswith("--"):
                continue
            value = next(words)[1]
        if option == "--config":
            if Path(value).is_file():
                yield read_config(value, layer)
            continue
        keys = option.removeprefix("--").removesuffix("+").split(".")
        # `--trainer.callbacks.monitor` speaks of the last item of a list, which this reading does not follow.
        if keys[-1] != "help" and (keys[0] != "trainer" or len(keys) == 2 or keys[1] not in TRAINER_LISTS):
            yield nested(keys, _from_command_line(value, layer))


def import_class(path: str, table: Mapping[str, str]) -> Any:
    """The object behind a dotted path, or None for a bare name that jsonargparse may know and we do not.

    Args:
        path: such as "package.module.Class".
        table: short names that were possible here.

    Raises:
        UnknownClassError: says how far the path leads.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        if table:
            raise UnknownClassError(
                f"{path!r} is neither a short name nor package.module.Class{suggestion(path, table)}"
            )
        modules = [import_module(module) for module in SHORTHAND_MODULES]
        return next((getattr(module, path) for module in modules if hasattr(module, path)), None)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if not f"{module_name}.".startswith(f"{missing}."):
            raise UnknownClassError(f"{module_name} needs the package {missing!r}, which is not installed") from error
        parent, _, last = missing.rpartition(".")
        if not parent:
            raise UnknownClassError(
                f"no module {missing} is installed; for one in the current folder set PYTHONPATH=."
            ) from error
        siblings = [entry.name for entry in pkgutil.iter_modules(getattr(import_module(parent), "__path__", []))]
        raise UnknownClassError(f"there is no module {missing}{suggestion(last, siblings)}") from error
    except AvcapError as error:
        raise UnknownClassError(f"{module_name}: {error}") from error
    except ImportError as error:
        raise UnknownClassError(f"{module_name} cannot be imported: {error}") from error
    if not hasattr(module, name):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value) and not key.startswith("_")]
        raise UnknownClassError(f"{module_name} has no class {name}{suggestion(name, classes)}")
    return getattr(module, name)


def argument_names(target: Any) -> set[str]:
    """The arguments of a class as the parser sees them, those of its bases behind `**kwargs` included."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target, "at", fail_untyped=False)
    return {action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("at.")}


def argument_hints(target: Any) -> dict[str, Any]:
    """Types of the arguments, as far as they can be resolved."""
    if dataclasses.is_dataclass(target):
        return _resolved(target)
    hints: dict[str, Any] = {}
    for base in reversed(inspect.getmro(target)):
        hints |= _resolved(vars(base).get("__init__"))
    return hints


def missing_arguments(target: Any, given: Located | None) -> list[str]:
    """Dotted names without a default that `given` lacks; a dataclass counts by its fields."""
    hints = argument_hints(target)
    missing = []
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.default is not parameter.empty or parameter.kind in {
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        }:
            continue
        value = None if given is None else given.get(name)
        if dataclasses.is_dataclass(hints.get(name)):
            missing += [f"{name}.{inner}" for inner in missing_arguments(hints[name], value)]
        elif value is None:
            missing.append(name)
    return missing


def fits(hint: Any, value: object) -> bool:
    """Whether the parser takes this value for this type."""
    if hint is Any:
        return True
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except (ValueError, TypeError):  # a type the parser cannot judge either
        return True
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


def wanted(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(wanted(part) for part in arguments)
    if origin is typing.Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is not None and arguments:
        inner = ", ".join("..." if part is Ellipsis else wanted(part) for part in arguments)
        return f"{getattr(origin, '__name__', origin)} of {inner}"
    if dataclasses.is_dataclass(hint):
        return f"the keys {', '.join(field.name for field in dataclasses.fields(hint))}"
    return str(getattr(hint, "__name__", hint))


def shown(value: Located) -> str:
    """A value as one writes it in YAML, cut to a readable length."""
    plain = value.plain()
    text = {None: "null", True: "true", False: "false"}.get(plain) if isinstance(plain, bool | None) else None
    text = text or repr(plain)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_lost_arguments(merged: Located, key: str, new: Located) -> Located:
    """`merged` without the init_args that the class of a later file does not take; the parser drops them, too."""
    named, old_args = new.get("class_path"), merged.get(key, "init_args")
    if named is None or old_args is None or not isinstance(merged.content, dict):
        return merged
    with suppress(UnknownClassError):
        names = argument_names(import_class(str(named.content), TABLES[key]))
        kept: dict[str, Located] = {name: value for name, value in _entries(old_args) if name in names}
        section = {name: value for name, value in _entries(merged.content[key]) if name != "init_args"}
        section["init_args"] = Located(dict(kept), old_args.where, old_args.layer)
        return Located(merged.content | {key: Located(dict(section), new.where, new.layer)}, merged.where, merged.layer)
    return merged


def _with_init_args(value: Located) -> Located:
    """`{class_path, init_args}` also where arguments stand directly beside or without the two."""
    direct = {key: argument for key, argument in _entries(value) if key not in CLASS_KEYS}
    if not direct or (value.get("init_args") is not None and value.get("class_path") is not None):
        return Located(dict(_entries(value)), value.where, value.layer)
    section = {key: argument for key, argument in _entries(value) if key in CLASS_KEYS}
    init_args = Located(dict(direct), value.where, value.layer)
    section["init_args"] = merge(section["init_args"], init_args) if "init_args" in section else init_args
    return Located(dict(section), value.where, value.layer)


def _from_command_line(text: str, layer: int) -> Located:
    try:
        located = locate(text, COMMAND_LINE, layer)
    except CommandLineError:
        located = None
    value = Located(text, COMMAND_LINE, layer) if located is None else located
    value.where = COMMAND_LINE
    return value


def _entries(value: Located) -> Iterator[tuple[str, Located]]:
    return iter(value.content.items() if isinstance(value.content, dict) else ())


def _names_classes(value: Located) -> bool:
    if isinstance(value.content, dict):
        return "class_path" in value.content or any(_names_classes(item) for item in value.content.values())
    return isinstance(value.content, list) and any(_names_classes(item) for item in value.content)


def _parts(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)


def _resolved(target: Any) -> dict[str, Any]:
    with suppress(NameError, TypeError, AttributeError):
        return typing.get_type_hints(target)
    return {}


def _line(problem: str) -> int:
    """The number in `file:line: ...`; 0 for the command line."""
    place = problem.split(":")[1]
    return int(place) if place.isdigit() else 0


def _shortened(refusal: str) -> str:
    """The parser's own words, at most three lines."""
    lines = [line.strip() for line in refusal.splitlines() if line.strip()]
    return "\n  ".join(lines[:3])
