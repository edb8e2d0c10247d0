"""Tells whether layers were changed in Python since they were last looked at."""

from collections.abc import Hashable, Iterable
from operator import is_
from typing import NamedTuple

import keras

from plait.compat import flat_layers
from plait.experts.signature import contents


class _Seen(NamedTuple):
    """A layer as it was: its attributes, and what those that change in place held."""

    layer: keras.layers.Layer
    values: tuple[object, ...]
    contents: Hashable


class Watch:
    """Compares layers, and the layers within them, with what they were at the last look.

    Values of variables may change: only attributes count, assigned or changed in place.
    """

    def __init__(self) -> None:
        self._seen: list[_Seen] = []

    def changed(self, layers: Iterable[keras.layers.Layer]) -> bool:
        """Returns whether an attribute has changed since the last look, and at the first."""
        if self._seen and all(map(_same, self._seen)):
            return False
        inner = [layer for each in layers for layer in flat_layers(each)]
        self._seen = [_Seen(one, tuple(vars(one).values()), contents(one)) for one in inner]
        return True


def _same(seen: _Seen) -> bool:
    present = vars(seen.layer)
    if len(present) != len(seen.values) or not all(map(is_, present.values(), seen.values)):
        return False
    return not seen.contents or contents(seen.layer) == seen.contents
