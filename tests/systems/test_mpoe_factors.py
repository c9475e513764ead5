"""MPOE's matrices: section 2 of the sheet, lines (f) 1 to 3 and bad input (g).

The experts and their router are in test_mpoe.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.factors.mpo import contract
from splitjax.factors.mpo_fit import decompose, fit, share
from splitjax.factors.mpo_plan import mpo_plan

FFN, LARGE, ATTENTION = (3072, 768), (4096, 1024), (768, 768)
DIMS = (FFN, LARGE, ATTENTION, (1024, 1024), (1536, 384))


def matrix(dims, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=dims)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_f1_full_bonds_are_exact(dims):
    """<= 1e-12 in float64, <= 1e-4 max |W| in float32; by SVD for the small one."""
    w, plan = matrix(dims), mpo_plan(*dims)
    method = "svd" if dims == (1536, 384) else "qr"
    cores, discarded = decompose(w, plan, method=method)
    assert np.abs(contract(cores, plan.central) - w).max() <= 1e-12
    assert discarded.sum() <= 1e-20
    narrow = [jnp.asarray(core, jnp.float32) for core in cores]
    error = np.abs(np.asarray(contract(narrow, plan.central)) - w).max()
    assert error <= 1e-4 * np.abs(w).max()


def test_f2_bonds_and_counts():
    assert mpo_plan(*FFN).bonds == (1, 12, 192, 384, 16, 1)
    sizes = [int(np.prod(shape)) for shape in mpo_plan(*FFN).shapes]
    assert sizes == [144, 36_864, 2_359_296, 147_456, 256]
    counts = [mpo_plan(*dims).parameters for dims in (FFN, LARGE, ATTENTION)]
    assert counts == [2_544_016, 4_522_496, 663_840]
    assert mpo_plan(*FFN).auxiliary / mpo_plan(*FFN).dense == pytest.approx(
        0.0783, abs=5e-5
    )
    assert mpo_plan(384, 1536).auxiliary / (384 * 1536) == pytest.approx(
        0.0788, abs=5e-5
    )


@pytest.mark.parametrize(
    ("experts", "ratio"), [(4, 3.046), (8, 4.919), (16, 7.103), (32, 9.129)]
)
def test_f2_ratios_to_three_digits(experts, ratio):
    assert round(mpo_plan(*FFN).ratio(experts), 3) == ratio


def test_f2_the_ratio_is_that_of_the_arrays():
    plan = mpo_plan(24, 18, 3)
    experts = share(fit(jnp.asarray(matrix((24, 18)), jnp.float32), plan), 4)
    count = sum(leaf.size for leaf in jax.tree.leaves(experts))
    assert 4 * 24 * 18 / count == pytest.approx(plan.ratio(4))


def test_f3_the_error_of_a_truncation_is_known():
    """= what the sweeps left out; between the best bond's and the sum of all."""
    w = matrix((192, 96))
    plan = mpo_plan(192, 96, max_bond=8)
    cores, discarded = decompose(w, plan)
    error = np.square(w - contract(cores, plan.central)).sum()
    assert error == pytest.approx(discarded.sum(), rel=1e-6)
    full = mpo_plan(192, 96)
    n = len(full.in_factors)
    order = [axis for k in range(n) for axis in (k, n + k)]
    tensor = w.reshape(*full.in_factors, *full.out_factors).transpose(order)
    tails = []
    for k in range(1, n):
        rows = int(np.prod(tensor.shape[: 2 * k]))
        values = np.linalg.svd(tensor.reshape(rows, -1), compute_uv=False)
        tails.append(np.square(values[plan.bonds[k] :]).sum())
    assert max(tails) < error < sum(tails)


def test_f3_a_larger_bond_is_nearer():
    w = matrix((24, 18))
    errors = [decompose(w, mpo_plan(24, 18, 3, max_bond=b))[1].sum() for b in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("dims", [(7, 13), (13, 24), (24, 13)], ids=str)
def test_g_primes_warn_that_nothing_is_saved(dims):
    with pytest.warns(UserWarning, match="dim=13 has the factors .* saves nothing"):
        if 7 in dims:
            with pytest.warns(UserWarning, match="in_dim=7"):
                plan = mpo_plan(*dims)
        else:
            plan = mpo_plan(*dims)
    w = matrix(dims)
    assert np.allclose(contract(decompose(w, plan)[0], plan.central), w)


def test_g_a_product_that_is_not_the_dimension():
    with pytest.raises(ValueError, match="product 16, and in_dim is 12"):
        mpo_plan(12, 8, in_factors=(4, 4), out_factors=(4, 2))
    with pytest.raises(ValueError, match="product 4, and out_dim is 8: give factors"):
        mpo_plan(12, 8, in_factors=(4, 3), out_factors=(2, 2), pad=True)
    with pytest.raises(ValueError, match="has one of each"):
        mpo_plan(12, 8, in_factors=(4, 3), out_factors=(2, 2, 2))
    with pytest.raises(ValueError, match="numbers from 1 on"):
        mpo_plan(12, 8, in_factors=(-4, -3))
    with pytest.raises(ValueError, match="out_dim=0"):
        mpo_plan(12, 0)
    with pytest.raises(ValueError, match="n=0"):
        mpo_plan(12, 8, 0)
    with pytest.raises(ValueError, match=r"\(8, 12\) and a plan for \(12, 8\)"):
        decompose(matrix((8, 12)), mpo_plan(12, 8, 3))


def test_g_a_bond_below_one_raises_and_one_above_the_full_is_clipped():
    with pytest.raises(ValueError, match="max_bond=0"):
        mpo_plan(24, 18, 3, max_bond=0)
    assert mpo_plan(24, 18, 3, max_bond=30_000) == mpo_plan(24, 18, 3)


def test_g_a_matrix_of_zeros_stays_trainable():
    """Where the reference's gauge gives NaN."""
    factor = fit(jnp.zeros((24, 18)), mpo_plan(24, 18, 3))
    assert not np.asarray(factor.materialize()).any()
    x = jnp.ones((2, 24))
    grads = jax.grad(lambda f: jnp.square(f.dot(x) - 1).sum())(factor)
    assert float(jnp.abs(grads.central).max()) > 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


def test_g_a_matrix_of_rank_one_is_exact():
    w = np.outer(np.arange(24.0), np.arange(18.0))
    cores, _ = decompose(w, mpo_plan(24, 18, 3))
    assert np.abs(contract(cores, 1) - w).max() < 1e-10


def test_g_nan_integers_and_vectors_raise():
    plan = mpo_plan(24, 18, 3)
    with pytest.raises(ValueError, match="NaN"):
        fit(jnp.full((24, 18), jnp.nan), plan)
    with pytest.raises(ValueError, match="int32"):
        fit(jnp.ones((24, 18), jnp.int32), plan)
    with pytest.raises(ValueError, match=r"\(24,\)"):
        fit(jnp.ones(24), plan)
    with pytest.raises(ValueError, match="empty"):
        fit(jnp.ones((0, 24, 18)), plan)


def test_g_bfloat16_is_decomposed_in_float64_and_cast_back():
    w = jnp.asarray(matrix((24, 18)), jnp.bfloat16)
    factor = fit(w, mpo_plan(24, 18, 3))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(factor)} == {"bfloat16"}
    gap = jnp.abs(factor.materialize().astype(jnp.float32) - w.astype(jnp.float32))
    assert float(gap.max()) < 0.05


def test_g_a_vocabulary_that_is_no_product_is_filled_up_and_sliced():
    """As 32128 rows become 8^5; here 29 become 32."""
    plan = mpo_plan(29, 18, in_factors=(2, 4, 4), out_factors=(3, 2, 3), pad=True)
    assert (plan.padded, plan.dims) == ((32, 18), (29, 18))
    w = jnp.asarray(matrix((29, 18)), jnp.float32)
    factor = fit(w, plan)
    assert factor.spec.shape == (29, 18)
    assert np.allclose(factor.materialize(), w, atol=1e-5)
    assert np.allclose(factor.dot(jnp.eye(29)), w, atol=1e-5)
    whole = mpo_plan(
        32128, 768, in_factors=(8,) * 5, out_factors=(3, 4, 4, 4, 4), pad=True
    )
    assert whole.bonds == mpo_plan(32768, 768).bonds
