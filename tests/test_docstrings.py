"""Every example in a docstring is run, on whichever backend runs the tests."""

import doctest
import importlib
import pkgutil

import pytest

import plait

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(plait.__path__, "plait.")
    if not name.endswith("__main__")
    and not name.startswith("plait.ops.backend.")  # the backends that do not run
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    if name == "plait.interop.keras_hub":
        pytest.importorskip("keras_hub")  # it needs a newer Keras than plait does
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
