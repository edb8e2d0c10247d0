"""Several devices: which axis of which variable of a mixture is split over them."""

from plait.distribution.layout import ExpertLayouts, distribute, layout_map

__all__ = ["ExpertLayouts", "distribute", "layout_map"]
