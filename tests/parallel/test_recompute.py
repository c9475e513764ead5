from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest

from splitjax.parallel.recompute import (
    counts,
    fewest_recomputed,
    residual_leaves,
    stage_bytes,
    stage_ratios,
)


def test_ratios_of_the_paper():
    assert stage_ratios(0.75, 4) == (
        Fraction(3, 4),
        Fraction(5, 8),
        Fraction(1, 4),
        Fraction(0),
    )
    assert stage_ratios(0.75, 4, shifted=True) == (
        Fraction(3, 4),
        Fraction(5, 8),
        Fraction(5, 8),
        Fraction(0),
    )


@pytest.mark.parametrize("stages", range(2, 9))
def test_kept_blocks_times_micro_batches_are_constant(stages):
    """Where a ratio is above 0; elsewhere a stage keeps all, and that is less."""
    first = Fraction(9, 10)
    for s, ratio in enumerate(stage_ratios(first, stages)[:-1]):
        open_ones = (1 - ratio) * (stages - 1 - s)
        bound = (1 - first) * (stages - 1)
        assert open_ones == bound if ratio else open_ones <= bound


def test_small_pipelines_have_no_stage_to_copy_from():
    assert stage_ratios(0.5, 1) == (0,)
    assert stage_ratios(0.5, 2, shifted=True) == (Fraction(1, 2), 0)
    assert stage_ratios(1, 3) == (1, 1, 0)
    assert counts(stage_ratios(0.5, 3), [3, 4, 5]) == (2, 0, 0)


def test_a_tenth_is_a_tenth():
    """The float is a little more, and 10 blocks times it were rounded up to 2."""
    assert stage_ratios(0.1, 2) == (Fraction(1, 10), 0)
    assert counts(stage_ratios(0.1, 2), [10, 10]) == (1, 0)
    assert counts([0.07, Fraction(7, 100)], [100, 100]) == (7, 7)


@pytest.mark.parametrize("first", [-0.1, 1.1])
def test_a_ratio_out_of_range_is_refused(first):
    with pytest.raises(ValueError, match="from 0 to 1"):
        stage_ratios(first, 4)


def test_the_solver_takes_the_first_that_fits():
    inputs, residuals = [2, 3, 5], [10, 30, 20]
    need = [stage_bytes(inputs, residuals, count, 4) for count in range(4)]
    assert need == [4 * 60, 4 * 52 + 10, 4 * 22 + 40, 4 * 2 + 60]
    for count, room in enumerate(need):
        assert fewest_recomputed(inputs, residuals, 4, room) == count
        assert fewest_recomputed(inputs, residuals, 4, room + 1) == count
    with pytest.raises(
        ValueError, match="keep 68 bytes at the least, and there are 67"
    ):
        fewest_recomputed(inputs, residuals, 4, 67)


def test_residuals_are_what_a_vjp_keeps():
    """Of sin(x @ w): x, and a cosine; the weight is there anyway."""
    w, x = jnp.ones((3, 5)), jnp.ones((2, 3))

    def run(w, s, x, more):
        return jnp.sin(x["h"] @ w) * x["mask"].astype(jnp.float32)[:, None]

    x = {"h": x, "mask": jnp.ones(2, bool)}
    found = residual_leaves(run, w, (), x, ())
    shapes = sorted(leaf.shape for leaf in found if leaf.ndim == 2)
    assert (2, 3) in shapes and (2, 5) in shapes and (3, 5) not in shapes
    _, pull = jax.vjp(lambda w, h: run(w, (), {**x, "h": h}, ()), w, x["h"])
    real = {id(leaf) for leaf in jax.tree.leaves(pull)} - {id(w)}
    assert len(found) == len(real)
