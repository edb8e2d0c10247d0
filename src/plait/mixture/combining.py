"""What a combination asks of experts and objective, as far as it can be seen."""

from typing import TYPE_CHECKING

import keras
from keras import tree

from plait.errors import message
from plait.losses import MixtureNLL
from plait.mixture.gates import last_layer
from plait.ops.merging import combination

if TYPE_CHECKING:
    from plait.mixture.model import Mixture

_PROBABILITY = "End it in a softmax, or in one sigmoid unit, or use combination='arithmetic'"


def check_combined(mixture: "Mixture") -> None:
    """Checks that a mixture's experts may give what its combination takes.

    Seen are the shape of the outputs and, where they are to be distributions over the last axis,
    the activation of an expert's last layer; the numbers themselves are not read. A negative one
    gives NaN.

    Raises:
        ValueError: If an output has no axis but the batch, or a last layer gives scores, or
            independent probabilities.
    """
    specs = tree.flatten(mixture.state.output_specs)
    for spec in specs:
        weights = mixture.state.weights_shape or ()
        combination(mixture.combination).check(weights, tuple(spec.shape))
    if mixture.combination != "geometric":
        return
    units = {spec.shape[-1] for spec in specs}
    for position, expert in enumerate(mixture.state.given):
        activation = getattr(last_layer(expert), "activation", None)
        wrong = {
            keras.activations.linear: "a linear layer, whose numbers may be negative",
            keras.activations.tanh: "tanh, whose numbers may be negative",
        }
        if units != {1}:
            independent = "a sigmoid of several units, which is no distribution over them"
            wrong[keras.activations.sigmoid] = independent
        if activation in wrong and len(specs) == 1:
            raise ValueError(
                message(
                    f"Expert {position} ({expert.name!r}) of a geometric combination must return "
                    "probabilities",
                    f"an expert that ends in {wrong[activation]}",
                    _PROBABILITY,
                )
            )


_LIKELIHOODS = {"gaussian": "plait.losses.NLL", "geometric": "the crossentropy"}


def check_likelihood(mixture: "Mixture") -> None:
    """Checks that a pool is not trained on the likelihood of a sum.

    Raises:
        ValueError: If its objective is `MixtureNLL`.
    """
    if mixture.combination != "arithmetic" and isinstance(mixture.objective, MixtureNLL):
        raise ValueError(
            message(
                "MixtureNLL is the likelihood of a weighted sum of distributions",
                f"combination={mixture.combination!r}",
                f"Compile it with {_LIKELIHOODS[mixture.combination]}, which is the likelihood of "
                "the pool, or use combination='arithmetic'",
            )
        )


def check_arithmetic(mixture: "Mixture", what: str) -> None:
    """Checks that a mixture is a weighted sum, as responsibilities and EM suppose.

    Raises:
        ValueError: If it is not.
    """
    if mixture.combination != "arithmetic":
        raise ValueError(
            message(
                f"`{what}` supposes that one expert made each example: a weighted sum of "
                "distributions",
                f"combination={mixture.combination!r}",
                "Use a mixture with combination='arithmetic'",
            )
        )
