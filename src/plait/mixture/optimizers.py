"""Which optimizers treat stacked experts as one variable where they would treat each alone."""

import keras

_BY_ELEMENT: tuple[type, ...] = (
    keras.optimizers.Adadelta,
    keras.optimizers.Adagrad,
    keras.optimizers.Adam,
    keras.optimizers.Adamax,
    keras.optimizers.AdamW,
    keras.optimizers.Ftrl,
    keras.optimizers.Lion,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
    keras.optimizers.SGD,
)
if hasattr(keras.optimizers, "ScheduleFreeAdamW"):  # since Keras 3.14
    _BY_ELEMENT += (keras.optimizers.ScheduleFreeAdamW,)


def what_differs(optimizer: keras.optimizers.Optimizer) -> str | None:
    """Returns what an optimizer does to a whole variable, or `None` if it updates number by number.

    An optimizer that updates number by number treats a stack `(e, …)` of variables as it would
    treat `e` variables. One that looks at a whole variable, at its norm or as a matrix, does not.

    Args:
        optimizer: A Keras optimizer.

    Example:
    >>> import keras
    >>> from plait.mixture.optimizers import what_differs
    >>> what_differs(keras.optimizers.SGD(clipnorm=1.0))
    'clipnorm=1.0 of SGD'
    >>> what_differs(keras.optimizers.SGD(global_clipnorm=1.0)) is None
    True
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return what_differs(optimizer.inner_optimizer)
    if hasattr(optimizer, "one_for_each_rate"):
        return what_differs(optimizer.given)
    name = type(optimizer).__name__
    # Keras has classes of its own for some backends, which are subclasses of the public ones.
    keras_own = type(optimizer).__module__.startswith("keras.")
    if not (keras_own and isinstance(optimizer, _BY_ELEMENT)):
        return f"the update of {name}"
    clipnorm = getattr(optimizer, "clipnorm", None)
    return f"clipnorm={clipnorm} of {name}" if clipnorm else None


def anew(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns an optimizer of the same settings that starts anew, perhaps on other variables."""
    if hasattr(optimizer, "one_for_each_rate"):
        return optimizer.anew()
    return type(optimizer).from_config(optimizer.get_config())


def warning(optimizer: keras.optimizers.Optimizer, stacks: list[str]) -> str | None:
    """Returns a text that says how training stacked experts differs, or `None`.

    Args:
        optimizer: A Keras optimizer.
        stacks: Names of the layers that own stacked variables.
    """
    what = what_differs(optimizer) if stacks else None
    if what is None:
        return None
    return (
        f"{what[0].upper()}{what[1:]} applies to a whole variable, and {', '.join(stacks)} hold"
        f"{'s' if len(stacks) == 1 else ''} the variables of several experts in one: they are "
        "updated otherwise than single experts would be. For single experts pass a list of models "
        "without `copy_experts`, or use an optimizer that updates number by number, such as Adam "
        "with global_clipnorm."
    )
