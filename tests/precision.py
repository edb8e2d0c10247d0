"""What tests need to compute in float64."""

import contextlib

import keras


@contextlib.contextmanager
def double():
    """Lets float64 be float64, which JAX does only where it is told so."""
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        try:
            yield
        finally:
            jax.config.update("jax_enable_x64", False)
    else:
        yield
