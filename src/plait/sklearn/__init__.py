"""scikit-learn estimators: mixtures of networks, and gates over estimators that exist already."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "plait.sklearn needs scikit-learn. Received: an environment without it. "
        "Install it with pip install plait[sklearn]."
    ) from error

from plait.sklearn.gated import GatedClassifier, GatedRegressor
from plait.sklearn.mixtures import MixtureClassifier, MixtureRegressor

__all__ = ["GatedClassifier", "GatedRegressor", "MixtureClassifier", "MixtureRegressor"]
