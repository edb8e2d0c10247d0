"""A small decoder transformer that reads characters: dense against top-2 of 8 experts.

`plait.Mixture` stands where the feed-forward block stood. An expert is half as wide as that block
and every character visits two of eight, so both models multiply alike for a character, and the
mixture holds four times the feed-forward weights. A third model is dense and as large as the
mixture: it multiplies four times as much. The text is Python's own reference, as it ships with
Python. `KERAS_BACKEND=jax python examples/char_transformer.py`; `--steps 60` for a glance.
"""

import argparse
import math
import time
from pydoc_data.topics import topics

import keras
import numpy as np
from gallery import PICTURES, figure, save
from keras import layers, ops

import plait

CONTEXT, WIDTH, HIDDEN, HEADS, BLOCKS = 64, 64, 256, 4, 2
EXPERTS, CHOSEN, BATCH = 8, 2, 32


def read_text(size=300_000):
    """Returns training and validation text as integers, and how many characters there are."""
    text = "\n\n".join(topics[name] for name in sorted(topics))[:size]
    alphabet = sorted(set(text))
    codes = np.array([alphabet.index(c) for c in text], "int32")
    cut = int(0.9 * len(codes))
    return codes[:cut], codes[cut:], len(alphabet)


def windows(codes, rng, count):
    """Returns `count` random windows and, one character later, what to predict: `(count, t)`."""
    start = rng.integers(0, len(codes) - CONTEXT, count)[:, None] + np.arange(CONTEXT)
    return codes[start], codes[start + 1]


def dense_block(hidden=HIDDEN):
    """Returns the feed-forward block of a dense transformer."""
    return keras.Sequential([layers.Dense(hidden, activation="gelu"), layers.Dense(WIDTH)])


def wide_block():
    """Returns a dense block with as many weights as the eight experts."""
    return dense_block(HIDDEN // CHOSEN * EXPERTS)


def sparse_block():
    """Returns eight blocks of half the hidden width, of which each character visits two."""
    expert = keras.Sequential(
        [layers.Dense(HIDDEN // CHOSEN, activation="gelu"), layers.Dense(WIDTH)]
    )
    router = plait.routers.TopK(CHOSEN, load_balance=0.01)
    gate = layers.Dense(EXPERTS, use_bias=False)  # on the last axis: scores for each character
    return plait.Mixture(expert, gate, num_experts=EXPERTS, router=router)


def transformer(alphabet, feed_forward):
    """Returns a decoder whose blocks end in what `feed_forward()` gives."""
    codes = keras.Input((CONTEXT,), dtype="int32")
    x = layers.Embedding(alphabet, WIDTH)(codes)
    positions = ops.cumsum(ops.ones_like(codes), axis=1) - 1
    x = x + layers.Embedding(CONTEXT, WIDTH)(positions)
    for _ in range(BLOCKS):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y, use_causal_mask=True)
        x = x + feed_forward()(layers.LayerNormalization()(x))
    return keras.Model(codes, layers.Dense(alphabet)(layers.LayerNormalization()(x)))


def train(feed_forward, steps, seed=0):
    """Trains one model; returns it with its bits per character and seconds per step."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    training, validation, alphabet = read_text()
    model = transformer(alphabet, feed_forward)
    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="nats")],
    )
    model.fit(*windows(training, rng, BATCH), batch_size=BATCH, verbose=0)  # compiles
    x, y = windows(training, rng, BATCH * steps)
    start = time.perf_counter()
    model.fit(x, y, batch_size=BATCH, verbose=0)
    seconds = (time.perf_counter() - start) / steps
    held_out = windows(validation, np.random.default_rng(1), min(256, BATCH * steps))
    nats = model.evaluate(*held_out, batch_size=BATCH, verbose=0, return_dict=True)["nats"]
    return model, nats / math.log(2), seconds


def usage(model):
    """Returns each expert's share of the weight on held-out text, `(blocks, e)`."""
    x, y = windows(read_text()[1], np.random.default_rng(2), BATCH)
    model.optimizer.learning_rate = 0.0  # the monitor reports at the end of an epoch
    monitor = plait.callbacks.BalanceMonitor(x, batch_size=BATCH)
    logs = model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[monitor]).history
    shares = [values[-1] for key, values in logs.items() if "/usage_" in key]
    return np.reshape(shares, (-1, EXPERTS))


def draw(shares, folder):
    """Draws a bar for each expert of each block."""
    made, axes = figure(BLOCKS, height=2.2, sharey=True)
    for block, (place, share) in enumerate(zip(axes, shares, strict=True)):
        place.bar(range(EXPERTS), share, color="#4878a8")
        place.axhline(1 / EXPERTS, color="#9aa5b1", linestyle="--")
        place.set_title(f"block {block}")
        place.set_xlabel("expert")
    axes[0].set_ylabel("share of the weight")
    save(made, "char_transformer", folder)


def main(arguments=None):
    """Prints the table, and draws how the experts are used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", default=PICTURES)
    options = parser.parse_args(arguments)
    print(f"{keras.config.backend()}, {options.steps} steps of {BATCH * CONTEXT} characters")
    print(f"{'feed-forward':<14}{'seed':>5}{'parameters':>12}{'bits/character':>16}{'ms/step':>9}")
    blocks = {"dense": dense_block, "top-2 of 8": sparse_block, "dense, wide": wide_block}
    for seed in range(options.seeds):
        for name, block in blocks.items():
            model, bits, seconds = train(block, options.steps, seed)
            size = f"{model.count_params():,}"
            print(f"{name:<14}{seed:>5}{size:>12}{bits:>16.3f}{1e3 * seconds:>9.0f}", flush=True)
            if block is sparse_block and seed == 0:
                draw(usage(model), options.folder)


if __name__ == "__main__":
    main()
