"""Trains mixtures in several processes under `DistributedDataParallel`; run by torchrun.

Every process takes its share of each batch. The first one prints JSON: for each case, how far the
variables and losses are from those of one process with whole batches.
"""

import json

import keras
import numpy as np
import torch
import torch.distributed as dist
from tests.distribution.recipes import CASES, made
from torch.nn.parallel import DistributedDataParallel

ROWS, STEPS = 16, 3


def train(model, forward, share):
    """Trains on a share of each batch; returns losses and variables."""
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(STEPS, ROWS, 6)), dtype=torch.float32)
    y = torch.tensor(rng.normal(size=(STEPS, ROWS, 2)), dtype=torch.float32)
    optimizer, loss_of = keras.optimizers.Adam(0.01), keras.losses.MeanSquaredError()
    losses = []
    for x_batch, y_batch in zip(x, y, strict=True):
        model.zero_grad()
        loss = loss_of(y_batch[share], forward(x_batch[share]))
        loss.backward()
        gradients = [v.value.grad for v in model.trainable_variables]
        with torch.no_grad():
            optimizer.apply(gradients, model.trainable_variables)
        losses.append(float(loss.detach()))
    return losses, [v.value.detach() for v in model.trainable_variables]


def run(case):
    rank, size = dist.get_rank(), dist.get_world_size()
    whole = made(case)
    losses, variables = train(whole, whole, slice(None))
    model = made(case)
    share = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    shared_losses, shared_variables = train(model, DistributedDataParallel(model), share)
    mean = torch.tensor(shared_losses)
    dist.all_reduce(mean)
    return {
        "losses": float((mean / size - torch.tensor(losses)).abs().max()),
        "variables": max(
            float((a - b).abs().max()) for a, b in zip(variables, shared_variables, strict=True)
        ),
        "processes": size,
        "moved": float(
            (variables[0] - made(case).trainable_variables[0].value.detach()).abs().max()
        ),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {case: run(case) for case in CASES}
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()
