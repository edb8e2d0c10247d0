"""The floors of the house: imports run down only, and only floor 0 asks which backend runs."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "plait"

FLOORS = [
    {"compat", "default_backend", "errors", "ops", "typing"},
    {"losses", "metrics", "routers"},
    {"encoding", "experts", "layers"},
    {"mixture"},
    {"callbacks", "training"},
    {"distribution", "export", "inspection", "interop", "plots", "sklearn", "tables"},
    {"cli", "report"},
]
# Rooms of one floor that a room may import; no arrow runs back.
NEIGHBOURS = {
    "compat": {"errors", "typing"},
    "ops": {"errors", "typing"},
    "cli": {"report"},
    "plots": {"inspection"},
}
# Methods of the mixture that run a floor above, imported when they are called.
DEFERRED = {("mixture", "training"), ("mixture", "export")}
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


def forbidden_arrows(path, room):
    """What a file imports from above its floor, or from a room of its floor that it may not."""
    return sorted(
        read
        for read in rooms_read(path)
        if FLOOR_OF[read] >= FLOOR_OF[room]
        and read != room
        and read not in NEIGHBOURS.get(room, ())
        and (room, read) not in DEFERRED
    )


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR_OF), f"give a floor to {rooms - set(FLOOR_OF)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_down(path):
    room = room_of(path)
    if room in FLOOR_OF:
        assert forbidden_arrows(path, room) == []
    else:
        assert room in {"__init__", "__main__"}


def test_an_arrow_that_is_turned_is_found(tmp_path):
    """A routing function that asks the mixture would be caught, even inside a function."""
    turned = tmp_path / "routing.py"
    turned.write_text("def f():\n    from plait.mixture import Mixture\n    return Mixture\n")
    assert forbidden_arrows(turned, "ops") == ["mixture"]


def test_an_arrow_between_rooms_of_one_floor_is_found(tmp_path):
    sideways = tmp_path / "softmax.py"
    sideways.write_text("from plait.losses import MixtureNLL\n")
    assert forbidden_arrows(sideways, "routers") == ["losses"]


def test_neighbours_do_not_import_each_other():
    for room, read in ((room, read) for room, rooms in NEIGHBOURS.items() for read in rooms):
        assert room not in NEIGHBOURS.get(read, ())
        assert FLOOR_OF[room] == FLOOR_OF[read]


def test_deferred_imports_are_inside_functions():
    """The mixture is imported without the floor above."""
    for room, read in DEFERRED:
        for path in (SOURCE / room).rglob("*.py"):
            top = [node for node in runtime_tree(path).body if isinstance(node, ast.ImportFrom)]
            assert not [n for n in top if (n.module or "").startswith(f"plait.{read}")]


def files_read(path):
    """The files of plait that a file imports when it is imported."""
    names = [
        name
        for node in runtime_tree(path).body
        for name in imported_modules(ast.Module([node], []))
        if isinstance(node, (ast.Import, ast.ImportFrom)) and name.startswith("plait")
    ]
    found = set()
    for name in names:
        stem = SOURCE.joinpath(*name.split(".")[1:])
        found |= {f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.exists()}
    return found - {path, SOURCE / "__init__.py"}


def test_no_file_imports_itself_by_way_of_others():
    graph = {path: files_read(path) for path in FILES}
    done = set()

    def visit(path, trail):
        assert path not in trail, " → ".join(str(p.relative_to(SOURCE)) for p in [*trail, path])
        if path not in done:
            for read in graph.get(path, ()):
                # A package's own face may list the file that asks for a sibling.
                if not (read.name == "__init__.py" and read.parent in path.parents):
                    visit(read, [*trail, path])
            done.add(path)

    for path in FILES:
        visit(path, [])


def test_parameters_are_rarely_just_any():
    """Names of `plait.typing` say what a tensor, a structure or a config is."""
    annotations = [
        node.annotation
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.arg) and node.annotation is not None
    ]
    anything = [a for a in annotations if isinstance(a, ast.Name) and a.id == "Any"]
    assert len(anything) < 0.1 * len(annotations)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_floor_zero_knows_backends_apart(path):
    """No native backend is imported, and no file asks which one runs, outside ops/backend."""
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
