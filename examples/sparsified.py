"""A KerasHub mixture runs every expert on every token; sparsified, those that it chose.

A Mixtral block with random weights, top-2 of 4, 16, 64 experts, before and after. The plain block
is the same with two experts, both chosen: the arithmetic that top-2 needs.
`KERAS_BACKEND=jax python examples/sparsified.py`
"""

import statistics
import time

import keras
import keras_hub
import numpy as np
from gallery import EXPERTS, GREY, PICTURES, figure, save

from plait.interop.keras_hub import sparsify

TOKENS, VOCABULARY = (4, 128), 100


def mixtral(experts, seed=0):
    """Returns a small decoder of one block, with random weights."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.MixtralBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=128,
        intermediate_dim=256,
        num_experts=experts,
        top_k=2,
    )
    return keras_hub.models.MixtralCausalLM(backbone=backbone, preprocessor=None)


def milliseconds(model, x, repeats):
    """Returns the median time of a forward pass, and the logits."""
    logits = model.predict_on_batch(x)  # compiles
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.predict_on_batch(x)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), logits


def draw(times, plain, folder):
    """Draws time over the number of experts."""
    made, (axes,) = figure(1, width=5.2, height=2.9)
    counts = list(times)
    for place, (name, color) in enumerate(
        [("as it comes", EXPERTS[1]), ("sparsified", EXPERTS[0])]
    ):
        axes.plot(counts, [times[n][place] for n in counts], "o-", color=color, label=name)
    axes.axhline(plain, color=GREY, linestyle="--", label="plain block of equal arithmetic")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, counts)
    axes.set_xlabel("experts, of which each token visits two")
    axes.set_ylabel("forward pass, ms")
    axes.legend()
    save(made, "sparsified", folder)


def main(experts=(4, 16, 64), repeats=10, folder=PICTURES):
    """Times all, prints the table, draws it."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, TOKENS).astype("int32")
    x = {"token_ids": ids, "padding_mask": np.ones(TOKENS, "int32")}
    plain, _ = milliseconds(mixtral(2), x, repeats)
    print(f"{keras.config.backend()}; plain block: {plain:.1f} ms")
    times = {}
    for count in experts:
        model = mixtral(count)
        dense, logits = milliseconds(model, x, repeats)
        sparse, same = milliseconds(sparsify(model), x, repeats)
        times[count] = dense, sparse
        print(
            f"top-2 of {count}: {dense:.1f} ms, sparsified {sparse:.1f} ms, "
            f"logits differ by {np.abs(logits - same).max():.1g}"
        )
    draw(times, plain, folder)


if __name__ == "__main__":
    main()
