"""The rules of the house as functions: a source text in, a list of what is wrong with it out.

Each rule is fed a bad text in a test of its own, so that a rule that can no longer fail is noticed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

# An import points down only: to a lower floor, within its own unit, or to a neighbour that shares its line here.
# Units separated by a bar in the design stand on one floor and do not know each other; they have lines of their own.
FLOORS: list[tuple[int, set[str]]] = [
    (7, {"cli", "tables", "serving", "__main__"}),
    # 6 is systems.<name>, 5 is systems.base: see `unit_of`.
    (4, {"data_modules"}),
    (4, {"metrics"}),
    (3, {"decoding"}),
    (3, {"weights"}),
    (3, {"accelerators"}),
    (2, {"backbones"}),
    (1, {"ops"}),
    (0, {"errors", "batch", ""}),
]
SYSTEM_CLASSES = ("LAVCap", "BuboGPT", "ZerAuCap", "VLRM")
NETWORK_MODULES = ("aiohttp", "ftplib", "http.client", "httpx", "requests", "smtplib", "urllib.request", "wget")
DOWNLOADING_CALLS = (
    "cached_download",
    "hf_hub_download",
    "load_dataset",
    "load_state_dict_from_url",
    "snapshot_download",
)
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
_DOTTED = re.compile(r"avcap_zoo(\.\w+)+\Z")


# -- floors ------------------------------------------------------------------------------------------------------


def unit_of(module: str, systems: Collection[str]) -> tuple[int, str]:
    """Floor of a module and the unit that may import itself freely.

    Args:
        module: dotted name; may go on into a class or function of the module.
        systems: names of the folders below `systems`.

    Raises:
        KeyError: a part of the package that has no floor yet.
    """
    parts = module.split(".")[1:]
    if parts[:1] == ["systems"]:
        if len(parts) > 1 and parts[1] in systems:
            return 6, f"systems.{parts[1]}"
        return 5, "systems.base"
    top = parts[0] if parts else ""
    for floor, names in FLOORS:
        if top in names:
            return floor, "+".join(sorted(names))
    raise KeyError(f"{module}: no floor is written down for {top!r} in tests/house/rules.py")


def imported_modules(tree: ast.AST, module: str, is_package: bool, known: Collection[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a module takes from avcap_zoo, at any depth.

    Imports in functions and under TYPE_CHECKING count, and so do strings that spell a dotted path.

    Args:
        tree: the parsed module.
        module: its dotted name.
        is_package: whether it is an `__init__.py`; relative imports count from there.
        known: dotted names of all modules of the package.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + (1 if is_package else 0)]
                base = ".".join([*parents, *([base] if base else [])])
            if _is_ours(base):
                names = (f"{base}.{alias.name}" for alias in node.names)
                yield from {(node.lineno, name if name in known else base) for name in names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.match(node.value):
            yield node.lineno, node.value


def floor_problems(
    source: str, module: str, *, is_package: bool, known: Collection[str], systems: Collection[str]
) -> list[str]:
    """Imports that point upwards, sideways, or from a system to a data module.

    The package itself is the front door: what its functions import when they are called may stand on any floor.
    """
    floor, unit = unit_of(module, systems)
    problems = []
    tree = ast.parse(source)
    if module == "avcap_zoo":
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef) and not _is_for_types(node)]
    for line, target in imported_modules(tree, module, is_package, known):
        try:
            other_floor, other_unit = unit_of(target, systems)
        except KeyError:
            if target.split(".")[1] in {name.split(".")[1] for name in known if "." in name}:
                raise
            continue  # a string such as "avcap_zoo.something" that names no module
        where = f"{module}:{line}"
        if other_floor > floor:
            problems.append(f"{where}: floor {floor} imports {target} of floor {other_floor}")
        elif other_floor == floor and other_unit != unit:
            problems.append(f"{where}: {unit} imports {target}, which stands beside it on floor {floor}")
        elif unit.startswith("systems.") and other_unit == "data_modules":
            problems.append(f"{where}: systems and data modules meet in batch.py only, but this imports {target}")
    return problems


def system_name_problems(source: str, module: str, systems: Collection[str]) -> list[str]:
    """Identifiers and strings that name a system below floor 6. Docstrings and comments may cite a paper."""
    if unit_of(module, systems)[0] >= 6:
        return []
    tree = ast.parse(source)
    docstrings = _docstring_nodes(tree)
    problems = []
    for node in ast.walk(tree):
        for text in _words_of(node, docstrings):
            problems += [
                f"{module}:{getattr(node, 'lineno', 1)}: {text!r} names the system {name}"
                for name in SYSTEM_CLASSES
                if name.lower() in text.lower()
            ]
    return problems


# -- words -------------------------------------------------------------------------------------------------------


def unfinished_problems(text: str, where: str) -> list[str]:
    """Marks of work left undone, in code and in comments."""
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    return [
        f"{where}:{number}: {match.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in marks.finditer(line)
    ]


def foreign_path_problems(text: str, where: str) -> list[str]:
    """Paths that exist on one machine only."""
    paths = re.compile(r"(?<![\w.}])/(?:work|root|home|Users)/|(?:\.\./)+shared\b|\bparents?\b.*[\"']shared[\"']")
    return [
        f"{where}:{number}: {match.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in paths.finditer(line)
    ]


def unsafe_problems(source: str, where: str) -> list[str]:
    """Ways to run foreign code by loading a file, and the one audio package we do without."""
    problems = []
    tree = ast.parse(source)
    docstrings = _docstring_nodes(tree)
    copies = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_pickled_copy(node)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.keyword):
            line = node.value.lineno
            if node.arg == "weights_only" and not _is_constant(node.value, True):
                problems.append(f"{where}:{line}: weights_only must be the word True")
            if node.arg == "allow_pickle" and not _is_constant(node.value, False):
                problems.append(f"{where}:{line}: allow_pickle")
        refused = isinstance(node, ast.keyword) and _is_constant(node.value, False)  # without it, the user is asked
        if not refused and any("trust_remote_code" in text for text in _words_of(node, docstrings)):
            problems.append(f"{where}:{line}: trust_remote_code")
        for name in _imports_of(node):
            if name.split(".")[0] == "torchaudio":
                problems.append(f"{where}:{line}: torchaudio")
            if name in {"pickle.load", "pickle.loads", "pickle.Unpickler"} or name.split(".")[0] in {"dill", "joblib"}:
                problems.append(f"{where}:{line}: {name}")
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in {"pickle", "cPickle", "_pickle"}
            and node.attr in {"load", "loads", "Unpickler"}
            and id(node) not in copies
        ):
            problems.append(f"{where}:{line}: pickle.{node.attr}")
    return problems


def docstring_problems(source: str, module: str) -> list[str]:
    """The module, and its public classes, functions and methods, that have no docstring."""
    tree = ast.parse(source)
    problems = [] if ast.get_docstring(tree) else [f"{module}:1: the module"]
    for node in tree.body:
        problems.extend(f"{module}:{line}: {name}" for line, name in _without_docstring(node, ""))
    return problems


def network_problems(source: str, where: str) -> list[str]:
    """Imports and calls by which a test would leave the machine."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 1)
        problems += [
            f"{where}:{line}: imports {name}"
            for name in _imports_of(node)
            if any(name == module or name.startswith(f"{module}.") for module in NETWORK_MODULES)
        ]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.split(".")[-1] in DOWNLOADING_CALLS or called.startswith("torch.hub."):
                problems.append(f"{where}:{line}: calls {called}")
    return problems


def vague_name_problems(paths: Collection[str]) -> list[str]:
    """Files and folders whose name says nothing of what they hold."""
    return [path for path in paths if any(part.removesuffix(".py") in VAGUE_NAMES for part in path.split("/"))]


# -- parts -------------------------------------------------------------------------------------------------------


def third_party_imports(source: str) -> set[str]:
    """Top-level names of the packages that a module imports, at any depth, ours left out."""
    return {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in _imports_of(node)
        if name and not _is_ours(name)
    }


def required_extras(source: str) -> list[tuple[str, str]]:
    """Arguments of each `require_extra("module", "extra")`."""
    return [
        (node.args[0].value, node.args[1].value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] == "require_extra"
        and len(node.args) == 2
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[0].value, str)
        and isinstance(node.args[1].value, str)
    ]


def _is_ours(name: str) -> bool:
    return name == "avcap_zoo" or name.startswith("avcap_zoo.")


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_constant(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_pickled_copy(node: ast.Call) -> bool:
    """Whether this is `pickle.loads(pickle.dumps(x))`: nothing foreign can come in that way."""
    inner = node.args[0] if node.args else None
    return (
        ast.unparse(node.func) == "pickle.loads"
        and isinstance(inner, ast.Call)
        and ast.unparse(inner.func) == "pickle.dumps"
    )


def _imports_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__", "require_extra"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ):
        return [node.args[0].value]
    return []


def _docstring_nodes(tree: ast.AST) -> set[int]:
    """Ids of the string constants that stand alone as a statement: docstrings, also those of attributes."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def _words_of(node: ast.AST, docstrings: set[int]) -> list[str]:
    """What a node spells: its identifier, or its text unless that is a docstring."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and id(node) not in docstrings else []
    if isinstance(node, ast.alias):
        return [node.name, node.asname or ""]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [value for field in ("id", "attr", "name", "arg") if isinstance(value := getattr(node, field, None), str)]


def _without_docstring(node: ast.stmt, owner: str) -> Iterator[tuple[int, str]]:
    if isinstance(node, (ast.If, ast.Try)):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from _without_docstring(child, owner)
        return
    if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
        return
    decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    if decorators & {"overload", "override", "setter", "deleter"}:
        return
    if not ast.get_docstring(node):
        yield node.lineno, f"{owner}{node.name}"
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            yield from _without_docstring(child, f"{owner}{node.name}.")
