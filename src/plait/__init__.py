"""plait weaves parallel Keras models into one: out = Σ w_l(x) · f_l(x)."""

__version__ = "0.1.0"
