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


# How docstrings write shapes: (b, …, e), (n, d), (e,). The first axis is one of the letters.
SHAPE = re.compile(r"(?<!\w)\((?:[benktcdr…]|n \+ 1),[^()]*\)|\bscalar")

# The public names that neither take nor give arrays; what plots draw has its shapes where it is
# made, in `plait.inspection`. All others state shapes.
WITHOUT_ARRAYS = {
    "plait.callbacks.TemperatureSchedule",  # routers
    "plait.distribution.distribute",  # a model and a layout
    "plait.export",  # a model and a path
    "plait.export.export",
    "plait.inspection.Interval",  # three numbers
    "plait.inspection.Score",  # a row of a table
    "plait.interop.keras_hub.sparsify",  # a model
    "plait.losses.families.get",  # a name
    "plait.plots.plot_calibration",
    "plait.plots.plot_confusion",
    "plait.plots.plot_curve",  # a list of numbers
    "plait.plots.plot_entropy",
    "plait.plots.plot_importance",
    "plait.plots.plot_scores",
    "plait.plots.plot_usage",
    "plait.plots.plot_weights_along",
    "plait.plots.to_svg",
    "plait.routers.get",  # a name
    "plait.training.GateChoice",  # a mixture and a number for each candidate
    "plait.training.PartRates",  # an optimizer
    "plait.training.Selection",  # a mixture and results
    "plait.training.Upcycled",  # a model and a number
    "plait.training.prune",  # a mixture and positions
}

# The public names that implement a published idea, and where it comes from: first author and year.
# A name belongs here if its docstring would otherwise present as plait's own what a paper
# introduced. What is plain arithmetic, a result, a picture or a convenience has no source.
SOURCES = {
    "plait.Mixture": [("Jacobs", 1991), ("Shazeer", 2017)],
    "plait.MultiGateMixture": [("Ma", 2018), ("Tang", 2020)],
    "plait.callbacks.TemperatureSchedule": [("Jang", 2017)],
    "plait.distribution.layout_map": [("Lepikhin", 2021)],
    "plait.inspection.best_constant_weights": [("Laird", 1977), ("Beck", 2009)],
    "plait.inspection.bootstrap": [("Efron", 1979)],
    "plait.inspection.calibration": [("Guo", 2017)],
    "plait.inspection.permutation_importance": [("Breiman", 2001)],
    "plait.layers.ClassWeights": [("Breiman", 1996)],
    "plait.layers.WeightedMerge": [("Jacobs", 1991), ("Genest", 1986)],
    "plait.losses.ExpertMean": [("Lakshminarayanan", 2017), ("Jacobs", 1991)],
    "plait.losses.MixtureNLL": [("Jacobs", 1991)],
    "plait.losses.NLL": [("Lakshminarayanan", 2017)],
    "plait.losses.families.Gaussian": [("Bishop", 1994)],
    "plait.ops.entmax15": [("Peters", 2019)],
    "plait.ops.expert_choice": [("Zhou", 2022)],
    "plait.ops.expert_load": [("Fedus", 2021)],
    "plait.ops.gaussian_pool": [("Hinton", 1999), ("Cao", 2014)],
    "plait.ops.importance": [("Shazeer", 2017)],
    "plait.ops.load_balance": [("Fedus", 2021)],
    "plait.ops.log_likelihood": [("Jacobs", 1991)],
    "plait.ops.log_pool": [("Genest", 1986)],
    "plait.ops.pool": [("Genest", 1986), ("Hinton", 1999)],
    "plait.ops.posterior": [("Jordan", 1994)],
    "plait.ops.sparsemax": [("Martins", 2016)],
    "plait.ops.straight_through": [("Bengio", 2013)],
    "plait.ops.top_k": [("Shazeer", 2017), ("Fedus", 2021)],
    "plait.ops.within_capacity": [("Lepikhin", 2021)],
    "plait.ops.z_loss": [("Zoph", 2022)],
    "plait.routers.Entmax15": [("Peters", 2019)],
    "plait.routers.ExpertChoice": [("Zhou", 2022)],
    "plait.routers.Gumbel": [("Jang", 2017)],
    "plait.routers.Router": [("Fedus", 2021), ("Shazeer", 2017), ("Zoph", 2022)],
    "plait.routers.Softmax": [("Jacobs", 1991)],
    "plait.routers.Sparsemax": [("Martins", 2016)],
    "plait.routers.TopK": [("Shazeer", 2017), ("Wang", 2024)],
    "plait.sklearn.GatedClassifier": [("Wolpert", 1992)],
    "plait.sklearn.GatedRegressor": [("Wolpert", 1992)],
    "plait.sklearn.MixtureClassifier": [("Jacobs", 1991)],
    "plait.sklearn.MixtureRegressor": [("Jacobs", 1991)],
    "plait.training.EMResult": [("Schwarz", 1978), ("Biernacki", 2000)],
    "plait.training.PartRates": [("Howard", 2018)],
    "plait.training.choose_gate": [("Breiman", 1984)],
    "plait.training.choose_num_experts": [("Schwarz", 1978), ("Biernacki", 2000)],
    "plait.training.cross_fit": [("Wolpert", 1992), ("van der Laan", 2007)],
    "plait.training.fit_em": [("Jordan", 1994), ("Dempster", 1977)],
    "plait.training.fit_gate": [("Wolpert", 1992)],
    "plait.training.upcycle": [("Komatsuzaki", 2022)],
}


def prose(found):
    """A docstring without its example, whose tuples are no shapes."""
    section = r"^Example:\n.*?(?=^[A-Z][\w ]*:\n|\Z)"
    return re.sub(section, "", inspect.getdoc(found), flags=re.M | re.S)


def cites(found, author, year):
    """Whether a docstring names an author, and the year in the same reference."""
    return bool(re.search(rf"\b{author}\b[^;:.()]*(?:et al\.)?[^;:.()]*\(?{year}\b", prose(found)))


def years(found):
    """Whether a docstring gives any year of a publication."""
    return bool(re.search(r"\b(?:19[5-9]|20[0-3])\d\b", prose(found)))


@pytest.mark.parametrize("module", MODULES)
def test_names_that_take_or_give_arrays_state_shapes(module):
    wrong = {
        name: "states none" if name not in WITHOUT_ARRAYS else "states one"
        for name, found in objects(module)
        if bool(SHAPE.search(prose(found))) == (name in WITHOUT_ARRAYS)
    }
    assert wrong == {}


@pytest.mark.parametrize("module", MODULES)
def test_published_ideas_have_their_source(module):
    lacking, unlisted = {}, []
    for name, found in objects(module):
        missing = [source for source in SOURCES.get(name, []) if not cites(found, *source)]
        if missing:
            lacking[name] = missing
        if years(found) and name not in SOURCES:
            unlisted.append(name)
    assert (lacking, unlisted) == ({}, [])


def test_the_lists_above_hold_only_public_names():
    hub = "plait.interop.keras_hub.sparsify"  # found where KerasHub is
    public = {name for m in MODULES if m != "plait.interop" for name, _ in public_objects(m)}
    assert {*WITHOUT_ARRAYS, *SOURCES} - public <= {hub}


def test_a_name_without_example_is_found():
    def bare(x: int) -> int:
        """Does something."""
        return x

    assert missing_parts(bare) == ["example", "Args", "Returns"]
    assert undescribed_arguments(bare) == ["x"]


def test_a_tuple_in_an_example_is_no_shape_and_another_year_no_source():
    def shown(x):
        """Does as Jacobs et al. (1991) do.

        Example:
        >>> shown((2, 3))
        (b, e)
        """

    assert not SHAPE.search(prose(shown))
    assert SHAPE.search("Tensor `(b, …, e)`.")
    assert cites(shown, "Jacobs", 1991)
    assert not cites(shown, "Jacobs", 1994)
