"""plait weaves parallel Keras models into one: out = Σ w_l(x) · f_l(x)."""

from plait import callbacks, layers, losses, metrics, ops, routers, training
from plait.mixture import Mixture

__version__ = "0.1.0"

__all__ = [
    "Mixture",
    "callbacks",
    "layers",
    "losses",
    "metrics",
    "ops",
    "routers",
    "training",
]
