"""How much faster KerasHub's models run once they are sparsified.

First a decoder in the shape of Qwen3-MoE at an eighth of its width: 128 experts, top-8. Then each
family, small, with 16 experts. The difference of the logits stands beside the times.
`KERAS_BACKEND=jax python -m benchmarks.sparsify`
"""

import keras
import keras_hub
import numpy as np
from keras import ops

from benchmarks.table import Row, options, show
from benchmarks.timing import compile_step, ratio, training_step
from plait.interop.keras_hub import sparsify

VOCABULARY, SHAPE = 1000, (4, 256)
DECODER = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 1,
    "hidden_dim": 256,
}
LARGE = DECODER | {"intermediate_dim": 768, "moe_intermediate_dim": 96, "head_dim": 32}
SMALL = DECODER | {"num_layers": 1, "hidden_dim": 128, "intermediate_dim": 256}
QWEN = SMALL | {"moe_intermediate_dim": 128, "num_experts": 16, "top_k": 4}
CASES = {
    "Qwen3-MoE shape, top-8 of 128": ("Qwen3Moe", LARGE | {"num_experts": 128, "top_k": 8}, 6.0),
    "Mixtral, top-2 of 16": ("Mixtral", SMALL | {"num_experts": 16, "top_k": 2}, None),
    "Qwen-MoE, top-4 of 16": ("QwenMoe", QWEN | {"shared_expert_intermediate_dim": 128}, None),
    "Qwen3-MoE, top-4 of 16": ("Qwen3Moe", QWEN, None),
    "gpt-oss, top-2 of 16": ("GptOss", SMALL | {"num_experts": 16, "top_k": 2}, None),
}


def twins(family, arguments):
    """Returns two task models of equal weights, the second sparse."""
    models = []
    for _ in range(2):
        backbone = getattr(keras_hub.models, f"{family}Backbone")(**arguments)
        task = getattr(keras_hub.models, f"{family}CausalLM")
        models.append(task(backbone=backbone, preprocessor=None))
    models[1].set_weights(models[0].get_weights())
    sparsify(models[1])
    return models


def forward(model, x):
    """A compiled call of the model."""
    weights = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]

    def logits(ids, *weights):
        inputs = {"token_ids": ids, "padding_mask": ops.ones_like(ids)}
        return model.stateless_call(list(weights), state, inputs, training=False)[0]

    return compile_step(logits, [x["token_ids"], *weights], False)


def rows(arguments):
    """Yields the table's rows."""
    rng = np.random.default_rng(0)
    ids = ops.convert_to_tensor(rng.integers(0, VOCABULARY, SHAPE).astype("int32"))
    x = {"token_ids": ids, "padding_mask": ops.ones_like(ids)}
    y = ops.convert_to_tensor(rng.integers(0, VOCABULARY, SHAPE).astype("int32"))
    for name, (family, shape, target) in CASES.items():
        if arguments.only not in name:
            continue
        dense, sparse = twins(family, shape)
        calls = [forward(model, x) for model in (dense, sparse)]
        logits = [ops.convert_to_numpy(ops.cast(call(), "float32")) for call in calls]
        apart = np.abs(logits[0] - logits[1]).max()
        steps = []
        for model in (dense, sparse):
            model.compile(keras.optimizers.SGD(1e-3), weighted_metrics=[])
            steps.append(training_step(model, x, y))
        for what, (theirs, ours) in {"forward": calls, "training step": steps}.items():
            found = ratio(theirs, ours, arguments.repeats)
            yield Row.of(
                f"`sparsify`, {name}, {what}: times faster",
                found,
                target,
                digits=0,
                note=f", logits differ by {apart:.0e}",
                at_least=True,
            )


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=7)))
