"""plait weaves parallel Keras models into one: out = Σ w_l(x) · f_l(x)."""

from plait import default_backend

default_backend.pick()  # before anything imports Keras

from plait import (  # noqa: E402
    callbacks,
    distribution,
    experts,
    layers,
    losses,
    metrics,
    ops,
    routers,
    tables,
    training,
)
from plait.export import export  # noqa: E402
from plait.mixture import Mixture, MultiGateMixture  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Mixture",
    "MultiGateMixture",
    "callbacks",
    "distribution",
    "experts",
    "export",
    "layers",
    "losses",
    "metrics",
    "ops",
    "routers",
    "tables",
    "training",
]
