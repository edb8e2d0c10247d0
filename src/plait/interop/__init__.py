"""Other libraries' models, and what plait does for them. Each module needs its own extra."""

from plait.interop import keras_hub

__all__ = ["keras_hub"]
