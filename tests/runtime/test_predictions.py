import jax
import numpy as np

from splitjax.core.algorithm import At
from splitjax.runtime.predictions import Predictions


def keys(numbered, ticks):
    ats = [numbered.at(At(jax.random.key(0), 0, np.int32(t), 0)) for t in ticks]
    return [tuple(jax.random.key_data(at.tick_key()).tolist()) for at in ats]


def test_no_two_predictions_have_one_key():
    made = keys(Predictions(), [3, 3, 3, 4, 4])
    training = [
        tuple(jax.random.key_data(At(jax.random.key(0), 0, t, 0).tick_key()).tolist())
        for t in (3, 4)
    ]
    assert len({*made, *training}) == 7


def test_a_run_that_goes_on_numbers_them_alike():
    assert keys(Predictions(), [3, 3, 4, 4])[2:] == keys(Predictions(), [4, 4])
