"""Expectation-maximisation for mixtures of experts (Jordan and Jacobs 1994)."""

import contextlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from numpy.typing import ArrayLike

from plait.errors import message
from plait.losses import MixtureNLL, families
from plait.training.em_by_batch import ExpertsByBatch, GateByBatch, Rows
from plait.training.em_experts import experts_of
from plait.training.em_gates import gate_of
from plait.training.em_gradient import GradientSteps
from plait.training.em_rows import read, rows_of
from plait.training.em_runs import Drivers, DriversByBatch, Run
from plait.training.on_disk import in_file
from plait.training.regression import Array
from plait.training.streams import (
    folder_of,
    is_stream,
    no_stream_arguments,
)
from plait.typing import Nested

if TYPE_CHECKING:
    from plait.mixture import Mixture

# Runs go together, in the same NumPy calls, as long as `r · n · e` is no larger.
_AT_ONCE = 2**15


class EMResult(NamedTuple):
    """What `fit_em` found.

    Attributes:
        log_likelihood: `Σ_n s_n log Σ_l w_l p_l` of the training data, with sample weights `s`, at
            the end of the best run.
        history: Dict with the `"log_likelihood"` before and after each iteration of the best run,
            and `"val_log_likelihood"` where validation data were given.
        restarts: The final log-likelihood of each run.
        converged: Whether the best run stopped before `max_iterations`.
        dead: Experts left with less than one row's worth of responsibility, weighted, or whose
            scale shrank to its bound: they explain next to nothing. `plait.training.prune` gives a
            mixture without them.
        num_parameters: Number of free parameters.
        bic: `−2 · log_likelihood + num_parameters · log n`, lower is better (Schwarz 1978); `n` is
            the sum of the sample weights, the number of rows where there are none.
        icl: `bic` plus twice the entropy of the responsibilities (Biernacki et al. 2000).
        scales: The learned standard deviations `(e,)` of Gaussian experts, else `None`.
    """

    log_likelihood: float
    history: dict[str, list[float]]
    restarts: list[float]
    converged: bool
    dead: list[int]
    num_parameters: int
    bic: float
    icl: float
    scales: Array | None


def fit_em(
    mixture: "Mixture",
    x: Any,
    y: Nested = None,
    *,
    family: str | families.Family = "gaussian",
    restarts: int | None = None,
    tol: float = 1e-6,
    max_iterations: int = 500,
    epochs: int = 5,
    batch_size: int | None = None,
    learning_rate: float = 0.01,
    validation_data: Any = None,
    sample_weight: ArrayLike | None = None,
    class_weight: Mapping[int, float] | None = None,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    seed: int | None = None,
    verbose: int | str = "auto",
) -> EMResult:
    """Fits a mixture to its likelihood `Σ_n s_n log Σ_l w_l(x_n) p_l(y_n | x_n)` by EM.

    The E-step computes responsibilities. The M-step fits the experts and the gate to them. Where an
    expert is one Dense layer with its family's canonical activation, and the gate is constant or
    one Dense layer under a softmax, it works in float64: Gaussian experts and constant weights have
    a closed form, the others take one Newton step (generalised EM). Where both are such, all runs
    go side by side. Elsewhere the M-step takes gradient steps. The log-likelihood never falls: a
    step that would lower it is halved or taken back.

    Afterwards the mixture is compiled with `MixtureNLL(family)` and Adam, its learned scales set,
    so that `responsibilities` and `evaluate` follow the family.

    A dataset or generator is read once, into temporary files. E- and M-step then go over these, and
    over arrays that are `numpy.memmap`, chunk by chunk: sums over the chunks are all that stays in
    memory, and the log-likelihoods are those of the same rows in memory.

    Args:
        mixture: The mixture; its weights are `(b, e)`.
        x: Input, as for `fit`: arrays, tables of pandas, or what yields batches `(x, y)` or
            `(x, y, sample_weight)`: `tf.data.Dataset`, `keras.utils.PyDataset`,
            `torch.utils.data.DataLoader`, a generator.
        y: Target array; `None` where `x` yields batches.
        family: `"gaussian"`, `"poisson"`, `"bernoulli"`, `"categorical"` or a
            `plait.losses.families.Family`.
        restarts: How many runs; the best is kept. By default 10 from random starts where the
            experts are linear, else one from the present weights. Further runs draw the weights of
            experts and gate anew; frozen layers keep theirs.
        tol: A run stops where an iteration gains less than this log-likelihood.
        max_iterations: A run stops after as many iterations.
        epochs: Epochs of one M-step where it goes by gradients.
        batch_size: As in `fit`, where a step goes by gradients; `None` is 32, or where `x` yields
            batches the size of the first one.
        learning_rate: Of Adam, where a step goes by gradients.
        validation_data: `None`; `(x, y)` or `(x, y, sample_weight)`, or what yields such batches,
            whose log-likelihood is noted.
        sample_weight: `None` or an array `(n,)`, not negative: how many rows each row counts as,
            `s_n`. A row of weight 2 is as good as two rows, in `bic` too; one of weight 0 is left
            out.
        class_weight: As in `fit`: `sample_weight` by the class of a row. Not with `sample_weight`.
        steps_per_epoch: How many batches of a dataset or generator are read, once; `None` for all.
            A generator needs it.
        validation_steps: As `steps_per_epoch`, of the validation data.
        seed: Seed of the random starts and of the order of rows in gradient steps. It alone decides
            them: Keras' global seed and the seeds of initialisers have no effect.
        verbose: 0 for silence, 1 for a progress bar, `"auto"` for 1.

    Returns:
        `EMResult`.

    Raises:
        ValueError: If weights have more axes than `(b, e)`, a number is out of range, sample
            weights are not one number for each row, not negative and not all zero, inputs or
            targets of linear parts are not finite, a generator may never end or its batches do not
            agree, or a layer to restart has no config that makes it anew.

    Example:
    >>> import keras, numpy as np, plait
    >>> x = np.linspace(-1, 1, 40, dtype="float32")[:, None]
    >>> y = np.where(np.arange(40) % 2, 3 * x[:, 0], -3 * x[:, 0]) + 0.1 * np.sin(97 * x[:, 0])
    >>> mix = plait.Mixture(keras.layers.Dense(1), gate="constant", num_experts=2)
    >>> found = mix.fit_em(x, y, sample_weight=np.full(40, 2), seed=0, verbose=0)
    >>> found.num_parameters, found.dead
    (7, [])

    References:
        Jordan, Jacobs (1994), Hierarchical mixtures of experts and the EM algorithm.
        Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data.
    """
    _check_numbers(restarts, max_iterations)
    with contextlib.ExitStack() as files:
        if is_stream(x):
            weights = (sample_weight, "Yield sample weights as the third part of a batch")
            target = (y, "Yield the target beside the input")
            no_stream_arguments("fit_em", y=target, sample_weight=weights)
            rows, first = read(x, steps_per_epoch, files, class_weight)
            batch_size = batch_size or first
        else:
            _check_no_steps(steps_per_epoch)
            rows = rows_of(x, y, sample_weight, class_weight)
        _check(mixture, rows.x)
        held_out = None
        if is_stream(validation_data):
            held_out, _ = read(validation_data, validation_steps, files, name="validation_data")
        elif validation_data is not None:
            held_out = rows_of(*validation_data)
        folder = folder_of(files) if in_file(rows[:2]) else None
        return _fit(
            mixture, rows, held_out, folder, family=families.get(family), restarts=restarts,
            tol=tol, max_iterations=max_iterations, epochs=epochs, batch_size=batch_size,
            learning_rate=learning_rate, seed=seed, verbose=verbose,
        )  # fmt: skip


def _fit(
    mixture: "Mixture",
    rows: Rows,
    held_out: Rows | None,
    folder: str | None,
    *,
    family: families.Family,
    restarts: int | None,
    tol: float,
    max_iterations: int,
    epochs: int,
    batch_size: int | None,
    learning_rate: float,
    seed: int | None,
    verbose: int | str,
) -> EMResult:
    """As `fit_em`, of rows in memory, or in files, beside which a folder holds what is found."""
    if not family.built:
        family.build((None, mixture.num_experts))
    x, y, counted = rows
    start = rows if folder is None else rows.first()
    generator = np.random.default_rng(seed)
    experts = experts_of(
        mixture, family, start.x, start.y, start.sample_weight, batch_size, generator
    )
    gate = gate_of(mixture, start.x, batch_size, generator)
    gradient = None
    if not (experts.exact and gate.exact):
        gradient = GradientSteps(
            mixture,
            family,
            x,
            y,
            generator,
            experts=not experts.exact,
            gate=not gate.exact,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
    runs = restarts or (10 if experts.exact else 1)
    bar = keras.utils.Progbar(
        runs, verbose=0 if verbose == 0 else 1, stateful_metrics=["log_likelihood"], unit_name="run"
    )
    parts: Drivers = Drivers(experts, gate, gradient, counted)
    if folder is not None:
        parts = DriversByBatch(
            ExpertsByBatch(experts, rows, folder, generator),
            GateByBatch(gate, rows),
            gradient,
            counted,
        )
    at_once = max(1, _AT_ONCE // (len(y) * mixture.num_experts))
    if gradient is not None or folder is not None:
        at_once = 1
    best: Run | None = None
    finals = np.empty(runs)
    for first in range(0, runs, at_once):
        numbers = np.arange(first, min(first + at_once, runs))
        if experts.exact or first > 0:
            parts.start(len(numbers))
        for done, run in enumerate(parts.run(numbers, tol, max_iterations, held_out), first + 1):
            finals[run.number] = run.total
            if best is None or run.rank > best.rank:
                best = run
            bar.update(done, [("log_likelihood", best.total)])
    assert best is not None  # there is at least one run
    parts.set_state(best.state)
    experts.write()
    gate.write()
    _compile(mixture, family, parts.scales())
    return _result(mixture, best, finals.tolist(), parts)


def _compile(mixture: "Mixture", family: families.Family, scales: Array | None) -> None:
    """Compiles the mixture with the objective that it was fitted to."""
    mixture.compile("adam", loss=MixtureNLL(family))
    if scales is not None:
        family.log_scale.assign(np.log(scales))  # type: ignore[attr-defined]


def _result(mixture: "Mixture", best: Run, finals: list[float], parts: Drivers) -> EMResult:
    total = best.history["log_likelihood"][-1]
    count = parts.experts.num_parameters() + parts.gate.num_parameters()
    bic = -2.0 * total + count * float(np.log(parts.weight()))
    if best.dead:
        warnings.warn(
            f"Experts {best.dead} of {mixture.name!r} explain next to nothing after EM. Leave them "
            "out with plait.training.prune, or use fewer experts (see "
            "plait.training.choose_num_experts) or more restarts.",
            stacklevel=4,
        )
    return EMResult(
        log_likelihood=total,
        history=best.history,
        restarts=finals,
        converged=best.converged,
        dead=best.dead,
        num_parameters=count,
        bic=bic,
        icl=bic + 2.0 * parts.entropy(best.responsibilities),
        scales=parts.scales(),
    )


def _check_no_steps(steps_per_epoch: int | None) -> None:
    if steps_per_epoch is not None:
        raise ValueError(
            message(
                "`steps_per_epoch` of fit_em says how many batches of a dataset are read; EM goes "
                "over all rows of arrays",
                f"steps_per_epoch={steps_per_epoch!r} for arrays",
                "Leave it out, or pass a part of the rows",
            )
        )


def _check_numbers(restarts: int | None, max_iterations: int) -> None:
    for name, value in (("restarts", restarts), ("max_iterations", max_iterations)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(
                message(
                    f"`{name}` of fit_em must be an integer of at least 1",
                    f"{name}={value!r}",
                    f"Use {name}=1 or more",
                )
            )


def _check(mixture: "Mixture", x: Nested) -> None:
    if not mixture.built:
        mixture(keras.tree.map_structure(lambda leaf: leaf[:1], x))
    if len(mixture.weights_shape() or ()) != 2:
        raise ValueError(
            message(
                "fit_em fits mixtures whose weights are (b, e)",
                f"weights of shape {mixture.weights_shape()}",
                "Fold the other axes into the batch, or train on plait.losses.MixtureNLL with fit",
            )
        )
