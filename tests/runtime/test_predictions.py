import jax
import numpy as np
import pytest

from splitjax.core.algorithm import At
from splitjax.runtime.predictions import Predictions

X = {"ids": np.arange(6, dtype=np.int32).reshape(2, 3), "mask": np.ones((2, 3), bool)}


def key_of(at):
    return tuple(jax.random.key_data(at.tick_key()).tolist())


def keys(numbered, ticks, x=X):
    key = jax.random.key(0)
    return [key_of(numbered.at(At(key, 0, np.int32(t), 0), x)) for t in ticks]


def test_no_two_predictions_have_one_key():
    made = keys(Predictions(), [3, 3, 3, 4, 4])
    training = [key_of(At(jax.random.key(0), 0, t, 0)) for t in (3, 4)]
    assert len({*made, *training}) == 7


def test_a_run_that_goes_on_numbers_them_alike():
    assert keys(Predictions(), [3, 3, 4, 4])[2:] == keys(Predictions(), [4, 4])


@pytest.mark.parametrize(
    "x",
    [
        {**X, "ids": X["ids"] + (X["ids"] == 5)},
        {**X, "ids": X["ids"][::-1]},
        {**X, "ids": X["ids"].reshape(3, 2)},
        {**X, "ids": X["ids"].astype(np.uint32)},
        {**X, "mask": X["mask"] & (X["ids"] < 5)},
    ],
    ids=["a number", "order", "shape", "type", "mask"],
)
def test_two_processes_that_count_alike_share_no_key_for_unlike_inputs(x):
    here, there = keys(Predictions(), [3, 3]), keys(Predictions(), [3, 3], x)
    assert len({*here, *there}) == 4


def test_an_array_is_an_input_wherever_it_lies():
    there = jax.tree.map(jax.numpy.asarray, X)
    assert keys(Predictions(), [3], there) == keys(Predictions(), [3])
