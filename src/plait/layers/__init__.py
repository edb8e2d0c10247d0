"""Layers: the weighted merge."""

from plait.layers.weighted_merge import WeightedMerge

__all__ = ["WeightedMerge"]
