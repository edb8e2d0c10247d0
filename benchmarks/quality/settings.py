"""What is set for each data set, the same for every network and mixture on it."""

from typing import NamedTuple


class Knobs(NamedTuple):
    """What tuning chooses.

    Attributes:
        decay: Weight decay of AdamW.
        noise: Standard deviation of Gaussian noise on the standardised features in training.
    """

    decay: float
    noise: float = 0.0


class Settings(NamedTuple):
    """The networks of one data set.

    Attributes:
        experts: Number of experts, `e`.
        hidden: Units of the hidden layers of one expert.
        grid: What tuning chooses from.
        epochs: Passes over the training rows.
        batch: Rows per step.
        rate: First learning rate of a cosine decay to zero.
        activation: Of the hidden layers; `"radial"` for locally tuned units.
    """

    experts: int
    hidden: tuple[int, ...]
    grid: tuple[Knobs, ...]
    epochs: int
    batch: int
    rate: float
    activation: str = "relu"


class Trees(NamedTuple):
    """What tuning chooses from for boosted trees."""

    learning_rate: float
    max_iter: int


DECAYS = (Knobs(0.0), Knobs(0.1), Knobs(0.03, 0.1))
STRONG = (Knobs(0.1), Knobs(0.3, 0.3), Knobs(1.0, 0.3))
SMALL = (Knobs(0.1, 0.3), Knobs(1.0, 0.3), Knobs(0.3, 0.6))
TREES = (Trees(0.1, 100), Trees(0.1, 200), Trees(0.2, 200))

SETTINGS = {
    "vowel": Settings(
        4, (128,), (Knobs(0.01, 0.1), Knobs(0.01, 0.2), Knobs(0.01, 0.3)), 60, 66, 0.01, "radial"
    ),
    "letter": Settings(8, (64, 64), DECAYS, 20, 128, 0.005),
    "kin8nm": Settings(8, (32, 32), DECAYS, 40, 128, 0.01, "silu"),
    "2dplanes": Settings(4, (16,), DECAYS, 20, 256, 0.01),
    "california": Settings(8, (32, 32), DECAYS, 30, 128, 0.005),
    "adult": Settings(8, (16,), STRONG, 10, 128, 0.005),
    "iris": Settings(4, (8,), SMALL, 40, 24, 0.02),
    "wine": Settings(4, (8,), SMALL, 40, 24, 0.02),
    "breast cancer": Settings(4, (8,), SMALL, 20, 32, 0.01),
}
