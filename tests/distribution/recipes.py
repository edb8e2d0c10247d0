"""Models that several processes or replicas train, with the same numbers in each."""

import keras

import plait


def expert():
    return keras.Sequential([keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)])


def shared():
    experts = [expert() for _ in range(3)]
    for one in experts:
        one.build((None, 6))
    return experts


CASES = {
    "list": lambda: plait.Mixture(shared()),
    "list_top1": lambda: plait.Mixture(shared(), router=plait.routers.TopK(1)),
    "stacked": lambda: plait.Mixture(expert(), num_experts=8),
    "top2": lambda: plait.Mixture(expert(), num_experts=8, router=plait.routers.TopK(2)),
    # 16 rows for 32 experts: some have none.
    "top1_of_32": lambda: plait.Mixture(expert(), num_experts=32, router=plait.routers.TopK(1)),
}


def made(case):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(6), CASES[case](), keras.layers.Dense(2)]
    )
