"""plait weaves parallel Keras models into one: out = Σ w_l(x) · f_l(x)."""

from plait import default_backend

default_backend.pick()  # before anything imports Keras

from plait import callbacks, experts, layers, losses, metrics, ops, routers, tables, training  # noqa: E402
from plait.mixture import Mixture  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Mixture",
    "callbacks",
    "experts",
    "layers",
    "losses",
    "metrics",
    "ops",
    "routers",
    "tables",
    "training",
]
