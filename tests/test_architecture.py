"""The floors of the house: arrows point down only, and only floor 0 knows backends apart."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "plait"

FLOORS = [
    {"default_backend", "errors", "ops", "typing"},
    {"losses", "metrics", "routers"},
    {"experts", "layers"},
    {"mixture"},
    {"callbacks", "training"},
    {"estimators", "export", "inspection", "interop", "plots", "tables"},
    {"cli", "report"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path, source=SOURCE):
    """The room that a file stands in: the name below the package."""
    return path.relative_to(source).parts[0].removesuffix(".py")


def imported_modules(tree):
    """Every module that a syntax tree imports, also inside functions; not for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def runtime_tree(path):
    """A file's syntax tree without what stands under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = [ast.Pass()]
    return tree


def rooms_read(path):
    """The rooms of plait that a file imports from."""
    names = {
        name.split(".")[1]
        for name in imported_modules(runtime_tree(path))
        if name.startswith("plait.")
    }
    return names & set(FLOOR_OF)


def upward_arrows(path, room):
    """What a file imports from above its floor, or from another room of its own floor 1 to 6."""
    return sorted(read for read in rooms_read(path) if FLOOR_OF[read] > FLOOR_OF[room])


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR_OF), f"give a floor to {rooms - set(FLOOR_OF)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_down(path):
    room = room_of(path)
    if room in FLOOR_OF:
        assert upward_arrows(path, room) == []
    else:
        assert room in {"__init__", "__main__"}


def test_an_arrow_that_is_turned_is_found(tmp_path):
    """A routing function that asks the mixture would be caught, even inside a function."""
    turned = tmp_path / "routing.py"
    turned.write_text("def f():\n    from plait.mixture import Mixture\n    return Mixture\n")
    assert upward_arrows(turned, "ops") == ["mixture"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_floor_zero_knows_backends_apart(path):
    """No native backend is imported, and nobody asks which one runs, outside ops/backend."""
    tree = runtime_tree(path)
    native = {name.split(".")[0] for name in imported_modules(tree)} & {
        "jax",
        "tensorflow",
        "torch",
    }
    asks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("config.backend")
    ]
    inside = path.is_relative_to(SOURCE / "ops" / "backend")
    assert inside or (native == set() and asks == [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_keras_is_used_by_its_public_names(path):
    private = [name for name in imported_modules(ast.parse(path.read_text())) if ".src" in name]
    assert private == []
    assert "keras.src" not in path.read_text()


def test_private_parts_of_plait_are_not_imported_across_rooms():
    """A name with a leading underscore is read only in its own room."""
    wrong = [
        (str(path.relative_to(SOURCE)), name)
        for path in FILES
        for name in imported_modules(runtime_tree(path))
        if name.startswith("plait.")
        and name.split(".")[-1].startswith("_")
        and not name.endswith("__")
        and name.split(".")[1] != room_of(path)
    ]
    assert wrong == []
