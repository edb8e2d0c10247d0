"""How layers are hidden from Keras."""

from collections import UserList

import keras


class UntrackedList(UserList[keras.layers.Layer]):
    """A list of layers that are no part of the model whose attribute it is.

    Keras tracks layers in attributes that are layers, lists, tuples, dicts or sets, and saves what
    it finds there. This class is none of these.
    """
