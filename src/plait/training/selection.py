"""How many experts: information criteria over EM fits."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from plait.errors import choose_from, message
from plait.training.em import EMResult, fit_em
from plait.typing import Nested

if TYPE_CHECKING:
    from plait.mixture import Mixture


class Selection(NamedTuple):
    """What `choose_num_experts` found.

    Attributes:
        num_experts: The number with the lowest criterion.
        mixture: The fitted mixture of that many experts.
        results: Dict from each candidate to its `EMResult`.
    """

    num_experts: int
    mixture: "Mixture"
    results: dict[int, EMResult]


def choose_num_experts(
    build: "Callable[[int], Mixture]",
    x: Nested,
    y: Nested,
    candidates: Iterable[int] = (1, 2, 3, 4),
    *,
    criterion: str = "bic",
    **arguments: Any,
) -> Selection:
    """Fits mixtures of several sizes by EM and picks one by an information criterion.

    BIC compares how well the densities fit (Schwarz 1978); ICL adds a penalty where an example
    belongs to no single expert (Biernacki et al. 2000), and so picks fewer. Both hold for experts
    and gates of few parameters; for networks compare validation scores.

    Args:
        build: Makes a new mixture of a given number of experts.
        x: Input array `(b, …)`.
        y: Target array `(b, u)`.
        candidates: The numbers to try.
        criterion: `"bic"` or `"icl"`.
        **arguments: What `fit_em` takes: `family`, `restarts`, `sample_weight` and so on.

    Returns:
        `Selection`.

    Raises:
        ValueError: If there is no candidate, or no such criterion.

    Example:
    >>> import keras, numpy as np, plait
    >>> x = np.linspace(-1, 1, 60, dtype="float32")[:, None]
    >>> y = np.where(np.arange(60) % 2, 3 * x[:, 0], -3 * x[:, 0]) + 0.1 * np.sin(97 * x[:, 0])
    >>> found = plait.training.choose_num_experts(
    ...     lambda e: plait.Mixture(keras.layers.Dense(1), gate="constant", num_experts=e),
    ...     x, y, candidates=(1, 2), verbose=0, seed=0,
    ... )
    >>> found.num_experts
    2

    References:
        Schwarz (1978), Estimating the dimension of a model.
        Biernacki, Celeux, Govaert (2000), Assessing a mixture model for clustering with the
        integrated completed likelihood.
    """
    if criterion not in ("bic", "icl"):
        raise ValueError(choose_from("criterion", criterion, ("bic", "icl")))
    sizes = list(candidates)
    if not sizes:
        raise ValueError(
            message(
                "`candidates` of choose_num_experts must name at least one number",
                f"candidates={sizes}",
                "Use candidates=(1, 2, 3)",
            )
        )
    mixtures, results = {}, {}
    for size in sizes:
        mixtures[size] = build(size)
        results[size] = fit_em(mixtures[size], x, y, **arguments)
    best = min(sizes, key=lambda size: getattr(results[size], criterion))
    return Selection(best, mixtures[best], results)
