"""The mixture: parallel Keras models and a gate, as one Keras model."""

from plait.mixture.model import Mixture

__all__ = ["Mixture"]
