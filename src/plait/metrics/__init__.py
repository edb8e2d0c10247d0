"""Metrics of mixing weights."""

from plait.metrics.usage import DeadExperts, ExpertUsage, GateEntropy

__all__ = ["DeadExperts", "ExpertUsage", "GateEntropy"]
