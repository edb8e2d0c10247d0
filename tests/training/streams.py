"""The ways in which data come to `fit` in batches, for tests: each of given arrays."""

import keras
import numpy as np
import pytest


class Sequence(keras.utils.PyDataset):
    """Batches of arrays, with or without an end."""

    def __init__(self, arrays, batch_size, endless=False):
        super().__init__()
        self.arrays, self.batch_size = arrays, batch_size
        self.endless = endless
        self.reads = 0

    @property
    def num_batches(self):
        return None if self.endless else -(-len(self.arrays[-1]) // self.batch_size)

    def __getitem__(self, index):
        self.reads += 1
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return tuple(
            keras.tree.map_structure(lambda leaf: leaf[rows], part) for part in self.arrays
        )


def forever(arrays, batch_size):
    """A generator that starts again at the end."""
    batches = Sequence(arrays, batch_size)
    while True:
        yield from (batches[i] for i in range(batches.num_batches))


def loader(arrays, batch_size):
    torch = pytest.importorskip("torch")
    rows = torch.utils.data.TensorDataset(*(torch.as_tensor(np.asarray(a)) for a in arrays))
    return torch.utils.data.DataLoader(rows, batch_size)


def tf_data(arrays, batch_size):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size)


KINDS = {"generator": forever, "loader": loader, "sequence": Sequence, "tf.data": tf_data}
NEEDS_STEPS = ("generator",)
