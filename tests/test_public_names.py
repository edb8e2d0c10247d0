"""Every public name says what it takes and gives, and shows it by an example that runs."""

import importlib
import inspect
import re

import pytest

MODULES = [
    "plait",
    "plait.callbacks",
    "plait.distribution",
    "plait.experts",
    "plait.export",
    "plait.inspection",
    "plait.interop",
    "plait.layers",
    "plait.losses",
    "plait.losses.families",
    "plait.metrics",
    "plait.ops",
    "plait.plots",
    "plait.routers",
    "plait.sklearn",
    "plait.training",
]


def public_objects(name):
    """Yields the classes and functions among the public names of a module."""
    module = importlib.import_module(name)
    for public in module.__all__:
        found = getattr(module, public)
        if inspect.ismodule(found) and name == "plait.interop":
            yield from ((f"{name}.{public}.{own}", getattr(found, own)) for own in found.__all__)
        elif inspect.isclass(found) or inspect.isfunction(found):
            yield f"{name}.{public}", found


def arguments_of(found):
    """The arguments that a caller may give, but for those that are named in no signature."""
    if inspect.isclass(found) and issubclass(found, tuple):
        return []  # a result, whose fields are attributes
    parameters = inspect.signature(found).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def has_example(found):
    """Whether a docstring shows code."""
    return bool(re.search(r">>>|```python", found.__doc__ or ""))


def functions_that_give(found, module):
    """The public functions that return a class: their examples show it too."""
    functions = [other for _, other in public_objects(module) if inspect.isfunction(other)]
    return [f for f in functions if f.__annotations__.get("return") in (found, found.__name__)]


def missing_parts(found, given_by=()):
    """What the docstring of a class or function lacks."""
    text = inspect.getdoc(found) or ""
    if not found.__doc__:
        return ["docstring"]
    lacks = []
    if not has_example(found) and not any(map(has_example, given_by)):
        lacks.append("example")
    if arguments_of(found) and not re.search(r"^Args:$", text, flags=re.M):
        lacks.append("Args")
    if inspect.isclass(found) and issubclass(found, tuple) and "Attributes:" not in text:
        lacks.append("Attributes")
    gives = inspect.isfunction(found) and found.__annotations__.get("return") not in (None, "None")
    if gives and not re.search(r"^Returns:$|^Returns? |^[A-Z]\w+ .*returns? ", text, flags=re.M):
        lacks.append("Returns")
    return lacks


def undescribed_arguments(found):
    """The arguments that `Args` leaves out."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(found) or "", flags=re.M | re.S)
    named = re.findall(r"^    \*{0,2}(\w+): ", section[1], flags=re.M) if section else []
    return [name for name in arguments_of(found) if name not in named]


def objects(module):
    if module == "plait.interop":
        pytest.importorskip("keras_hub")
    return public_objects(module)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_described_and_shown(module):
    lacking = {}
    for name, found in objects(module):
        is_result = inspect.isclass(found) and issubclass(found, tuple)
        given_by = functions_that_give(found, module) if is_result else []
        lacking[name] = missing_parts(found, given_by)
    assert {name: parts for name, parts in lacking.items() if parts} == {}


@pytest.mark.parametrize("module", MODULES)
def test_every_argument_is_described(module):
    lacking = {name: undescribed_arguments(found) for name, found in objects(module)}
    assert {name: arguments for name, arguments in lacking.items() if arguments} == {}


# How docstrings write shapes: (b, …, e).
SHAPE = re.compile(r"`?\([a-z…][\w…, ]*,[\w…, ]*\)|`\(b,\)`|\(e,\)|scalar", flags=re.I)


@pytest.mark.parametrize("module", ["plait.layers", "plait.ops"])
def test_names_that_take_tensors_give_shapes(module):
    without = [name for name, found in objects(module) if not SHAPE.search(found.__doc__)]
    assert without == []


def test_a_name_without_example_is_found():
    def bare(x: int) -> int:
        """Does something."""
        return x

    assert missing_parts(bare) == ["example", "Args", "Returns"]
    assert undescribed_arguments(bare) == ["x"]
