import jax
import pytest

from splitjax.bench.steps import one_program
from splitjax.train.stepper import stepper

pytestmark = pytest.mark.slow


def test_one_program_keeps_moments_of_32_bits_of_parameters_of_16(options):
    with jax.numpy_dtype_promotion("standard"):  # for Optax, as in algorithms.split
        params, moments, _ = one_program(options(after=("embed",), precision="mixed"))()
    kinds = [
        {leaf.dtype.name for leaf in jax.tree.leaves(t)} for t in (params, moments)
    ]
    assert kinds == [{"bfloat16", "float32"}, {"float32", "int32"}]


def test_a_step_is_timed_on_the_mesh(options):
    one = options(after=("embed",), ragged=False, mesh="data=8", zero=1)
    slot = stepper(one)[1]()[1]
    assert any(leaf.sharding.num_devices == 8 for leaf in jax.tree.leaves(slot))
