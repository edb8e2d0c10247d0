"""`plait.Mixture` with TopK(2) of 64 experts, through the model, over what its arithmetic takes.

Two-layer experts 256 → 512 → 256, 4,096 tokens. The limit is one such network on 8,192 rows. The
load is set by the bias of the gate, a Dense layer that is a part of what is timed.
`KERAS_BACKEND=jax python -m benchmarks.sparse`
"""

import keras
import numpy as np
from keras import layers, ops

import plait
from benchmarks.table import Row, options, show
from benchmarks.timing import compile_step, of_model, ratio, ratio_of_blocks, tensor
from plait.compat import flat_layers

SHAPE, CHOSEN, UNITS, HIDDEN = (8, 512), 2, 256, 512
TOKENS = SHAPE[0] * SHAPE[1]
BALANCED = {"jax": (1.35, 1.45), "torch": (1.25, 1.4), "tensorflow": (None, 1.6)}
TARGETS = {  # forward, forward and backward
    "capacity 1.25, balanced": BALANCED,
    "dropless, balanced": BALANCED,
    "dropless, skewed": BALANCED | {"torch": (1.4, 1.45)},
}


def two_layers():
    """Returns the template of an expert."""
    return keras.Sequential([layers.Dense(HIDDEN, activation="relu"), layers.Dense(UNITS)])


def gated(units=UNITS, width=HIDDEN):
    """Returns an expert as Mixtral has them."""
    rows = keras.Input((units,))
    hidden = layers.Dense(width, activation="silu", use_bias=False)(rows)
    hidden = hidden * layers.Dense(width, use_bias=False)(rows)
    return keras.Model(rows, layers.Dense(units, use_bias=False)(hidden))


def mixture(x, template, num_experts, skewed=False, capacity_factor=None):
    """Returns a mixture whose gate spreads `x` evenly, or gives expert 0 ten times the mean."""
    router = plait.routers.TopK(CHOSEN, capacity_factor=capacity_factor)
    mix = plait.Mixture(template, layers.Dense(num_experts), num_experts=num_experts, router=router)
    mix(x[:1])
    kernel, bias = mix.gate.get_weights()
    rows = np.asarray(ops.convert_to_numpy(ops.cast(x, "float32"))).reshape(-1, UNITS)
    kernel = kernel.astype("float32") / np.linalg.norm(kernel.astype("float32"), axis=0)
    if skewed:
        scores = rows @ kernel
        bar = np.sort(scores[:, 1:], axis=1)[:, -CHOSEN] - scores[:, 0]
        bias[0] = np.quantile(bar, 10 * CHOSEN / num_experts)
    mix.gate.set_weights([kernel, bias])
    return mix


def largest_load(mix, x):
    """Returns the largest load over the mean."""
    chosen = np.asarray(mix.gate_weights(x), "float32") > 0
    loads = chosen.reshape(-1, mix.num_experts).sum(0)
    return loads.max() / loads.mean()


def mixtral_block(num_experts=64, chosen=CHOSEN, units=UNITS, width=HIDDEN):
    """Returns KerasHub's block of such experts."""
    import keras_hub

    backbone = keras_hub.models.MixtralBackbone(
        vocabulary_size=8,
        num_layers=1,
        num_query_heads=1,
        num_key_value_heads=1,
        hidden_dim=units,
        intermediate_dim=width,
        num_experts=num_experts,
        top_k=chosen,
    )
    found = flat_layers(backbone.transformer_layers[0])
    return next(layer for layer in found if type(layer).__name__ == "MixtralSparseMoeBlock")


def rows(arguments):
    """Yields the table's rows."""
    backend = keras.config.backend()
    rng = np.random.default_rng(0)
    x = tensor(rng.normal(size=(*SHAPE, UNITS)))
    doubled = tensor(rng.normal(size=(TOKENS * CHOSEN, UNITS)))
    dense = two_layers()
    dense(doubled[:1])
    limit_function, limit_weights = of_model(dense)
    for name in TARGETS:
        if arguments.only not in name:
            continue
        factor = 1.25 if name.startswith("capacity") else None
        mix = mixture(x, two_layers(), 64, "skewed" in name, factor)
        function, weights = of_model(mix)
        for backward in (False, True):
            what = "forward and backward" if backward else "forward"
            step = compile_step(function, [x, *weights], backward)
            limit = compile_step(limit_function, [doubled, *limit_weights], backward)
            found = ratio(step, limit, arguments.repeats)
            target = TARGETS[name].get(backend, (None, None))[backward]
            note = f", load up to {largest_load(mix, x):.1f} of the mean"
            what = f"top-2 of 64, {name}, over the limit: {what}"
            yield Row.of(what, found, target, digits=0, note=note)
    if arguments.only in "L = 512 over L = 16":
        many, few = (
            compile_step(function, [x, *weights], False)
            for function, weights in (of_model(mixture(x, two_layers(), n)) for n in (512, 16))
        )
        found = ratio(many, few, arguments.repeats)
        yield Row.of("top-2, forward, L = 512 over L = 16", found, 2.5, digits=0)
    if arguments.only in "mixtral":
        yield from over_mixtral(x, arguments)
    if arguments.only in "large" and arguments.device == "gpu":
        yield large(rng, arguments)


def large(rng, arguments):
    """Returns the row of a large layer: 128 gated experts 2048 → 768 → 2048, 32,768 tokens, top-8.

    VeOmni publishes 242 TFLOP/s for its grouped products on an H100.
    """
    tokens, units, width, num_experts, chosen = 32_768, 2048, 768, 128, 8
    x = tensor(rng.normal(size=(tokens, units)))
    router = plait.routers.TopK(chosen)
    template = gated(units, width)
    mix = plait.Mixture(template, layers.Dense(num_experts), num_experts=num_experts, router=router)
    mix(x[:1])
    function, weights = of_model(mix)
    limit, own = of_model(gated(units, width))
    rows = ops.concatenate([x] * chosen)
    steps = compile_step(function, [x, *weights], False), compile_step(limit, [rows, *own], False)
    found = ratio(*steps, arguments.repeats)
    speed = 2 * 3 * tokens * chosen * units * width / found.ours / 1e9
    what = "top-8 of 128 gated experts 2048 → 768 → 2048, 32,768 tokens, over the limit: forward"
    return Row.of(what, found, note=f", {speed:.0f} TFLOP/s")


def over_mixtral(x, arguments):
    """Yields the rows over KerasHub's block, and that of the limit."""
    block = mixtral_block()
    state = [v.value for v in block.non_trainable_variables]
    weights = [v.value for v in block.trainable_variables]

    def hub(x, *weights):
        return block.stateless_call(list(weights), state, x, training=False)[0][0]

    theirs = compile_step(hub, [x, *weights], False)
    function, own = of_model(mixture(x, gated(), 64))
    ours = compile_step(function, [x, *own], False)
    dense = gated()
    doubled = ops.concatenate([ops.reshape(x, (-1, UNITS))] * CHOSEN)
    limit = compile_step(of_model(dense)[0], [doubled, *of_model(dense)[1]], False)
    few = max(3, arguments.repeats // 2)
    for what, step, target in (
        ("top-2 of 64 gated experts, forward, over KerasHub's Mixtral block", ours, 0.06),
        ("their limit, over KerasHub's Mixtral block", limit, None),
    ):
        # Not in turns: their step leaves gigabytes behind, and the next one would pay for it.
        yield Row.of(what, ratio_of_blocks(step, theirs, few), target, digits=0)


if __name__ == "__main__":
    arguments = options(__doc__, repeats=11)
    show(rows(arguments))
