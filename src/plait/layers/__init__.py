"""Layers: the formula itself, and gates that are layers of their own."""

from plait.layers.class_weights import ClassWeights
from plait.layers.weighted_merge import WeightedMerge

__all__ = ["ClassWeights", "WeightedMerge"]
