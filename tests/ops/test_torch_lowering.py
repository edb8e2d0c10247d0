"""Functions of rows and variables that are lowered to one call, against one expert at a time."""

from itertools import pairwise

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if keras.config.backend() != "torch":
    pytest.skip("only PyTorch lowers", allow_module_level=True)

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.nn import functional  # noqa: E402

from plait.ops.backend import torch as native  # noqa: E402
from plait.ops.backend.common import NotLoweredError  # noqa: E402
from plait.ops.backend.torch_lowering import lowered  # noqa: E402
from plait.ops.backend.torch_runs import GroupedRuns, Runs  # noqa: E402
from plait.ops.dispatch import apply_experts  # noqa: E402

BOUNDS = [0, 2, 2, 5, 6]  # the second expert has no rows
E, R, D = len(BOUNDS) - 1, BOUNDS[-1], 3
RUNS = Runs(BOUNDS, "cpu")

STEPS = {
    "product": lambda x, w, b, g: torch.matmul(x, w),
    "bias": lambda x, w, b, g: x + b,
    "bias first": lambda x, w, b, g: b + x,
    "scale": lambda x, w, b, g: x * g,
    "difference": lambda x, w, b, g: g - x,
    "of variables": lambda x, w, b, g: x * (g * 0.5 + b).tanh(),
    "pointwise": lambda x, w, b, g: functional.gelu(x),
    "gated": lambda x, w, b, g: functional.silu(torch.matmul(x, w)) * x,
    "norm": lambda x, w, b, g: (x - x.mean(-1, keepdim=True)) * g,
    "second reader": lambda x, w, b, g: (lambda y: y + (y + b))(torch.matmul(x, w)),
    "weighted bias": lambda x, w, b, g: torch.add(x, b, alpha=2) + torch.add(1.0, g),
    "softmax": lambda x, w, b, g: functional.softmax(x, dim=-1) + b,
    "halves": lambda x, w, b, g: torch.matmul(torch.cat(x.split([1, D - 1], dim=-1), dim=-1), w),
}


def values(rng, *shape):
    return torch.tensor(rng.normal(size=shape), dtype=torch.float64, requires_grad=True)


def one_by_one(function, variables, x):
    parts = [
        function([v[i] for v in variables], [x[a:b]])[0]
        for i, (a, b) in enumerate(pairwise(BOUNDS))
        if a < b
    ]
    return torch.cat(parts)


def agree(function, variables, x):
    leaves = [*variables, x]
    (found,), wanted = lowered(function, variables, [x], RUNS), one_by_one(function, variables, x)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, wanted)
    upstream = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).reshape(found.shape)
    for create in (False, True):
        got, want = (
            torch.autograd.grad(
                (y * upstream).sum(),
                leaves,
                allow_unused=True,
                create_graph=create,
                retain_graph=True,
            )
            for y in (found, wanted)
        )
        for a, b, leaf in zip(got, want, leaves, strict=True):
            zero = torch.zeros_like(leaf)
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b)
    return got, want


@settings(max_examples=80, deadline=None)
@given(
    chain=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
    inner=st.sampled_from([(), (2,), (2, 2)]),
    seed=st.integers(0, 99),
)
def test_chains_of_products_additions_and_pointwise_functions(chain, inner, seed):
    """Outputs, gradients, and the gradients' gradients."""
    rng = np.random.default_rng(seed)
    variables = [values(rng, E, D, D), values(rng, E, D), values(rng, E, D)]

    def function(own, rows):
        x = rows[0]
        for step in chain:
            x = STEPS[step](x, *own)
        return [x + 0 * rows[0]]

    x = values(rng, R, *inner, D)
    got, want = agree(function, variables, x)
    leaves = [*variables, x]
    norms = [sum((g**2).sum() for g in each if g is not None) for each in (got, want)]
    if all(norm.requires_grad for norm in norms):
        second, wanted = (torch.autograd.grad(norm, leaves, allow_unused=True) for norm in norms)
        for a, b, leaf in zip(second, wanted, leaves, strict=True):
            zero = torch.zeros_like(leaf)
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b)


READERS = {
    "a bias": (lambda x, w, b: torch.matmul(x, w) + b, [True]),
    "a bias first": (lambda x, w, b: torch.add(b, torch.matmul(x, w)), [True]),
    "on its device": (lambda x, w, b: torch.matmul(x, w).to("cpu").to(x.dtype) + b, [True]),
    "einsum": (lambda x, w, b: torch.einsum("ab,bc->ac", x, w) + b, [True]),
    "another function": (lambda x, w, b: torch.matmul(x, w).tanh() + b, [False]),
    "nobody": (lambda x, w, b: torch.matmul(x, w), [False]),
    "a scaled bias": (lambda x, w, b: torch.add(torch.matmul(x, w), b, alpha=2), [False]),
    "rows": (lambda x, w, b: torch.matmul(x, w) + x, [False]),
    "a bias, then rows": (lambda x, w, b: (lambda y: y + b + y)(torch.matmul(x, w)), [True, False]),
    "rows, then a bias": (lambda x, w, b: (lambda y: y * y + (y + b))(torch.matmul(x, w)), [False]),
    "a list": (lambda x, w, b: torch.cat([torch.matmul(x, w), x], -1).sum(-1, True) + b, [False]),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_product_and_the_bias_that_reads_it_are_one_pass(rng, reader, monkeypatch):
    function, passes = READERS[reader]
    found, product = [], Runs.product

    def noting(runs, x, w, b=None):
        found.append(b is not None)
        return product(runs, x, w, b)

    variables, x = [values(rng, E, D, D), values(rng, E, D)], values(rng, R, D)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(Runs, "product", noting)
        lowered(lambda own, rows: [function(rows[0], *own)], variables, [x], RUNS)
    assert found == passes
    agree(lambda own, rows: [function(rows[0], *own)], variables, x)


@pytest.mark.parametrize("inner", [(), (2,)])
@pytest.mark.parametrize("step", STEPS)
def test_grouped_products_are_those_by_expert(rng, step, inner, monkeypatch):
    """Where the host does not know the loads: outputs and gradients, in float32."""
    monkeypatch.setattr(
        "tests.ops.test_torch_lowering.D", 4
    )  # rows of 16 bytes, as the kernel wants
    draw = lambda *shape: values(rng, *shape).float().detach().requires_grad_()  # noqa: E731
    variables, x = [draw(E, 4, 4), draw(E, 4), draw(E, 4)], draw(R, *inner, 4)
    function = lambda own, rows: [STEPS[step](rows[0], *own)]  # noqa: E731
    found = []
    for runs in (RUNS, GroupedRuns(torch.tensor(BOUNDS, dtype=torch.int32), R)):
        (y,) = lowered(function, variables, [x], runs)
        found.append([y, *torch.autograd.grad((y**2).sum(), [*variables, x], allow_unused=True)])
    for a, b in zip(*found, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("e", [3, 6])  # of six experts, the last three are never chosen
def test_experts_run_without_the_host_knowing_their_loads(rng, monkeypatch, e, empty):
    n, k, d = 9, 2, 4
    indices = np.argsort(rng.random((n, 3)), axis=1)[:, :k].astype("int32")
    if empty:
        indices[3:5, 1], indices[7] = e, e
    x = torch.tensor(rng.normal(size=(n, d)), dtype=torch.float32, requires_grad=True)
    w = torch.tensor(rng.normal(size=(e, d, d)), dtype=torch.float32)
    w[3:] = torch.inf
    w.requires_grad_()

    def found():
        function = lambda own, rows, segment: torch.tanh(rows @ own[0]) + 1  # noqa: E731
        y = apply_experts(function, [w], x, torch.tensor(indices), num_experts=e)
        return [y, *torch.autograd.grad((y**2).sum(), [x, w])]

    wanted = found()
    monkeypatch.setattr(native, "GROUPED_PRODUCTS", True)
    monkeypatch.delattr(native, "Runs")  # what needs the loads
    for a, b in zip(found(), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("equation", "units"), [("ab,bc->ac", (4,)), ("abc,cd->abd", (4,)), ("abc,cde->abde", (4, 2))]
)
def test_einsum_over_the_last_axis(rng, equation, units):
    w = values(rng, E, D, *units)
    x = values(rng, R, *(2,) * (equation.index(",") - 2), D)
    agree(lambda own, rows: [torch.einsum(equation, rows[0], own[0])], [w], x)


BAD = {
    "a variable by keyword": lambda w, x: torch.matmul(x, w).add(other=w.mean(0)),
    "over the rows": lambda w, x: x - x.mean(0),
    "over all": lambda w, x: x / x.abs().sum(),
    "rows moved": lambda w, x: x.flip(0),
    "rows transposed": lambda w, x: (x.T @ x) @ torch.ones(D, D, dtype=x.dtype),
    "hidden mean": lambda w, x: x - x.T.mean(1),
    "a variable's values": lambda w, x: x * w.norm(),
    "tied": lambda w, x: torch.matmul(x, w.T),
    "read out": lambda w, x: x * float(x.detach().numpy().sum()),
    "a product of rows": lambda w, x: torch.matmul(torch.matmul(x, w), x.mT),
    "more axes": lambda w, x: torch.ones(2, R, D, dtype=x.dtype) * x,
    "no rows": lambda w, x: torch.ones(R, D, dtype=x.dtype),
    "rows joined": lambda w, x: torch.matmul(x.reshape(R // 2, 2 * D)[:, :D], w),
    "indexed": lambda w, x: x[[1, 0, 2, 3, 4, 5]],
    "rolled": lambda w, x: torch.roll(x, 1, 0),
    "cumulated": lambda w, x: torch.cumsum(x, 0),
    "softmax over rows": lambda w, x: functional.softmax(x, dim=0),
    "in place": lambda w, x: (lambda y: y + x.mul_(2))(torch.matmul(x, w)),
    "in place by an argument": lambda w, x: functional.relu(torch.matmul(x, w), inplace=True),
    "into another": lambda w, x: torch.mul(x, 2, out=torch.empty_like(x)),
    "split rows": lambda w, x: torch.cat(x.split(3)),
}


@pytest.mark.parametrize("what", BAD)
def test_what_mixes_rows_is_not_lowered(rng, what):
    with pytest.raises(NotLoweredError):
        lowered(
            lambda own, rows: [BAD[what](own[0], rows[0])],
            [values(rng, E, D, D)],
            [values(rng, R, D)],
            RUNS,
        )
