"""The rules of the house, read from the source with `ast`: nothing is imported.

A rule is a generator of breaches, each `file:line: what is wrong`; the test it becomes
passes when there are none and otherwise shows them all.
"""

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = {
    1: "core",
    2: "codecs factors optim kernels privacy adapters metrics data storage",
    3: "models algorithms parallel",
    4: "runtime",
    5: "train",
    6: "studies",
    7: "bench",
    8: "splitjax",  # the package's own face, splitjax/*.py
    9: "experiments configs",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
ARROWS: dict[str, set[str]] = {}  # {"from": {"to"}}: siblings that may know each other
AT_HOME = {  # loaded in one room only, and there inside a function
    "flax.nnx": "adapters",
    "grpc": "runtime",
    "qwix": "factors",
    "tensorflow": "data",
    "tensorflow_datasets": "data",
}
NOT_IN_CORE = {"flax", "grpc", "qwix", "tensorflow", "tensorflow_datasets"}
NOWHERE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "torch"}
MAY_PRINT: set[str] = set()  # files whose output is their purpose
NAMELESS = {"utils", "util", "common", "base", "helpers", "misc"}
MAX_LINES = 300
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def rule(breaches):
    """Makes a test of a generator of breaches."""

    def test():
        found = list(breaches())
        assert not found, "\n".join(["", *found])

    test.__doc__ = breaches.__doc__
    return test


@functools.cache
def sources() -> dict[pathlib.Path, ast.Module]:
    """The syntax tree of every file of the house."""
    rooms = ("splitjax", "experiments", "configs")
    files = sorted(file for room in rooms for file in (ROOT / room).rglob("*.py"))
    return {file: ast.parse(file.read_text(), str(file)) for file in files}


def at(file: pathlib.Path, node: ast.AST | int = 1) -> str:
    line = node if isinstance(node, int) else getattr(node, "lineno", 1)
    return f"{file.relative_to(ROOT)}:{line}"


def module_of(file: pathlib.Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def room_of(module: str) -> str:
    """`splitjax.codecs.c3` -> `codecs`; `splitjax.version` -> `splitjax`."""
    top, _, rest = module.partition(".")
    inner = rest.partition(".")[0]
    return inner if top == "splitjax" and inner in FLOOR else top


def is_deferred(node: ast.AST) -> bool:
    """Whether what `node` holds runs only on a call, or only for a type checker."""
    types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, FUNCTION) or types_only


def imports(file: pathlib.Path) -> Iterator[tuple[ast.AST, str, bool]]:
    """Yields (node, absolute name, deferred) for everything that a file imports."""
    tree = sources()[file]
    late = {n for node in ast.walk(tree) if is_deferred(node) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, node in late
        elif isinstance(node, ast.ImportFrom):
            home = module_of(file).split(".")[: -node.level] if node.level else []
            for alias in node.names:  # `from flax import nnx` loads flax.nnx
                name = ".".join([*home, *filter(None, [node.module]), alias.name])
                yield node, name, node in late


def loads(name: str, library: str) -> bool:
    return f"{name}.".startswith(f"{library}.")


@rule
def test_imports_run_downward():
    for file in sources():
        room = room_of(module_of(file))
        for node, name, _ in imports(file):
            other = room_of(name)
            if other not in FLOOR or other == room or other in ARROWS.get(room, ()):
                continue
            if FLOOR[other] >= FLOOR[room]:
                yield (
                    f"{at(file, node)}: {room} (floor {FLOOR[room]}) imports "
                    f"{other} (floor {FLOOR[other]})"
                )


@rule
def test_every_room_has_a_floor():
    for file in sources():
        folder = file.parent.relative_to(ROOT).parts[:2][-1]
        if folder not in FLOOR:
            yield f"{at(file)}: {folder}/ is not on the floor plan"


@rule
def test_heavy_libraries_stay_at_home():
    for file in sources():
        room = room_of(module_of(file))
        for node, name, deferred in imports(file):
            for library in NOWHERE | (NOT_IN_CORE if room == "core" else set()):
                if loads(name, library):
                    yield f"{at(file, node)}: {room} may not import {library}"
            for library, home in AT_HOME.items():
                if loads(name, library) and not (deferred and room == home):
                    yield f"{at(file, node)}: {library} belongs in a function of {home}"


@rule
def test_files_are_short_and_named():
    for file in sources():
        lines = len(file.read_text().splitlines())
        if lines > MAX_LINES:
            yield f"{at(file, lines)}: {lines} lines, at most {MAX_LINES}"
        if file.stem in NAMELESS:
            yield f"{at(file)}: the name {file.name} says nothing"


@rule
def test_public_names_are_documented():
    """With an example, where a package's `__init__` offers the function."""
    faces = [file for file in sources() if file.name == "__init__.py"]
    offered = {name for face in faces for _, name, _ in imports(face)}
    for file in sources():
        if not file.is_relative_to(ROOT / "splitjax"):
            continue
        for node in sources()[file].body:
            if not isinstance(node, (*FUNCTION, ast.ClassDef)) or node.name[0] == "_":
                continue
            if any("overload" in ast.unparse(d) for d in node.decorator_list):
                continue
            text = ast.get_docstring(node) or ""
            if not text:
                yield f"{at(file, node)}: {node.name} has no docstring"
            elif isinstance(node, FUNCTION) and not re.search("Example|>>>", text):
                if f"{module_of(file)}.{node.name}" in offered:
                    yield f"{at(file, node)}: {node.name} has no example"


@rule
def test_no_print_no_eval_no_pickle():
    for file, tree in sources().items():
        path = str(file.relative_to(ROOT))
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                yield f"{at(file, node)}: never pickle; leave allow_pickle out"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("eval", "exec"):
                    yield f"{at(file, node)}: {node.func.id}() runs what it reads"
                if node.func.id == "print" and path.startswith("splitjax/"):
                    if path not in MAY_PRINT:
                        yield f"{at(file, node)}: the library does not print"


@rule
def test_todos_are_signed():
    for file in sources():
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if re.search(r"\b(TODO|FIXME|XXX)\b(?!\(\w+\))", line):
                yield f"{at(file, number)}: write TODO(name)"


@rule
def test_configs_open_with_what_they_cost():
    for file, tree in sources().items():
        if file.parent == ROOT / "configs" and file.name != "__init__.py":
            text = ast.get_docstring(tree) or ""
            for label in ("Paper", "Run", "Expect", "Cost"):
                if not re.search(rf"^{label}: *\S", text, re.MULTILINE):
                    yield f"{at(file)}: the docstring has no line `{label}: ...`"
