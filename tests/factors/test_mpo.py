"""What is special to MPO factors; the paper's claims are in tests/systems."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.factor import factorize, materialize
from splitjax.core.tree import where
from splitjax.factors.mpo import Mpo, MpoExperts, _leftward, _rightward, contract
from splitjax.factors.mpo_cost import mpo_cost
from splitjax.factors.mpo_fit import decompose, fit, fresh_experts, mpo, share
from splitjax.factors.mpo_plan import PRESETS, mpo_plan, plan_keeping

PLAN = mpo_plan(24, 18, 4)


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def test_factors_of_one_side_say_how_many_the_other_has():
    """At the dimensions of a preset, too, which has five."""
    plan = mpo_plan(768, 3072, in_factors=(8, 12, 8))
    assert len(plan.out_factors) == 3 and plan.padded == (768, 3072)


@pytest.mark.parametrize("dims", [(384, 1536), (384, 384), (24, 18)], ids=str)
@pytest.mark.parametrize("share", [0.06, 0.5, 1.0])
def test_a_share_gets_the_largest_bonds_that_it_holds(dims, share):
    plan = plan_keeping(share, *dims)
    most = max(plan.bonds)
    assert plan == dataclasses.replace(mpo_plan(*dims, max_bond=most), bonds=plan.bonds)
    assert plan.parameters <= share * plan.dense
    assert mpo_plan(*dims, max_bond=most + 1).parameters > share * plan.dense
    made = fit(jnp.asarray(matrix(*dims), jnp.float32), plan)
    assert sum(core.size for core in jax.tree.leaves(made)) == plan.parameters


def test_a_share_of_less_than_one_bond_is_told():
    with pytest.raises(ValueError, match=r"share 0.01 of a matrix \(24, 18\)"):
        plan_keeping(0.01, 24, 18)


def test_presets_are_products_of_their_sides_and_serve_both_orientations():
    for rows, columns in PRESETS:
        plan, turned = mpo_plan(rows, columns), mpo_plan(columns, rows)
        assert plan.padded == plan.dims == turned.dims[::-1]
        assert (plan.bonds, plan.parameters) == (turned.bonds, turned.parameters)


@pytest.mark.parametrize("dims", [(24, 18), (384, 384), (30, 64), (360, 1)], ids=str)
@pytest.mark.filterwarnings("ignore:out_dim=1 has:UserWarning")
def test_balanced_factors_have_the_largest_in_the_middle(dims):
    for factors, dim in zip(
        (mpo_plan(*dims).in_factors, mpo_plan(*dims).out_factors), dims, strict=True
    ):
        assert np.prod(factors) == dim and max(factors) == factors[2]


def test_an_entry_is_the_product_of_the_cores_matrices():
    """The definition, for every digit of both indices."""
    cores, _ = decompose(matrix(12, 8), plan := mpo_plan(12, 8, 3))
    whole = contract(cores, plan.central)
    for row, column in ((0, 0), (7, 5), (11, 7)):
        rows = np.unravel_index(row, plan.in_factors)
        columns = np.unravel_index(column, plan.out_factors)
        entry = np.eye(1)
        for core, i, j in zip(cores, rows, columns, strict=True):
            entry = entry @ core[:, i, j, :]
        assert entry.item() == pytest.approx(whole[row, column], abs=1e-12)


def test_the_central_core_is_the_center_of_orthogonality():
    w = matrix(24, 18)
    cores, _ = decompose(w, PLAN)
    c = PLAN.central
    for core in cores[:c]:
        own = core.reshape(-1, core.shape[-1])
        assert np.allclose(own.T @ own, np.eye(own.shape[1]), atol=1e-12)
    for core in cores[c + 1 :]:
        own = core.reshape(core.shape[0], -1)
        assert np.allclose(own @ own.T, np.eye(len(own)), atol=1e-12)
    assert np.linalg.norm(cores[c]) == pytest.approx(np.linalg.norm(w), rel=1e-12)


def test_what_truncating_a_bond_costs_is_read_from_the_central_core():
    w, keep = matrix(24, 18), 3
    cores, _ = decompose(w, PLAN)
    c = PLAN.central
    d, i, j, e = PLAN.shapes[c]
    left, values, right = np.linalg.svd(cores[c].reshape(d, -1), full_matrices=False)
    center = (left[:, :keep] * values[:keep]) @ right[:keep]
    cut = [*cores[:c], center.reshape(d, i, j, e), *cores[c + 1 :]]
    error = np.square(w - contract(cut, c)).sum()
    assert error == pytest.approx(np.square(values[keep:]).sum(), rel=1e-9)


def test_qr_is_svd_at_full_bonds_and_refuses_to_truncate():
    w = matrix(24, 18)
    cores, discarded = decompose(w, PLAN, method="qr")
    assert np.abs(contract(cores, PLAN.central) - w).max() < 1e-12
    assert not discarded.any()
    with pytest.raises(ValueError, match="cannot truncate"):
        decompose(w, mpo_plan(24, 18, 4, max_bond=3), method="qr")
    with pytest.raises(ValueError, match="did you mean 'svd'"):
        decompose(w, PLAN, method="svds")


@pytest.mark.parametrize("max_bond", [None, 3])
def test_both_ways_give_one_product(max_bond):
    plan = mpo_plan(24, 18, 4, max_bond=max_bond)
    factor = fit(jnp.asarray(matrix(24, 18), jnp.float32), plan)
    x = jnp.asarray(matrix(5, 24, 1), jnp.float32)
    want = x @ factor.materialize()
    for mode in ("rebuild", "sequential"):
        found = dataclasses.replace(factor, mode=mode).dot(x)
        assert np.allclose(found, want, atol=1e-4)
    with pytest.raises(ValueError, match="did you mean 'rebuild'"):
        dataclasses.replace(factor, mode="rebuilt").dot(x)


def counted(mode: str, tokens: int, plan) -> float:
    """Operations of a product, as XLA counts them."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in plan.shapes]
    c = plan.central
    factor = Mpo(tuple(shapes[:c]), shapes[c], tuple(shapes[c + 1 :]), plan.dims, mode)
    x = jax.ShapeDtypeStruct((tokens, plan.dims[0]), jnp.float32)
    lowered = jax.jit(lambda f, x: f.dot(x)).lower(factor, x)
    return lowered.cost_analysis()["flops"]


def test_the_better_end_is_begun_at():
    """Both ends give one product; the matrix turned round has them exchanged."""
    plan = mpo_plan(24, 18, 4, max_bond=5)
    factor = fit(jnp.asarray(matrix(24, 18), jnp.float32), plan)
    x = jnp.asarray(matrix(5, 24, 1), jnp.float32)
    cores = [*factor.left, factor.central, *factor.right]
    for through in (_rightward, _leftward):
        assert np.allclose(through(cores, x), x @ factor.materialize(), atol=1e-4)
    wide, tall = mpo_plan(12, 90, 3), mpo_plan(90, 12, 3)
    ends = [mpo_cost(plan.shapes, 1).is_rightward for plan in (wide, tall)]
    assert ends[0] != ends[1]


@pytest.mark.parametrize("max_bond", [None, 12, 2])
def test_the_operations_counted_are_those_that_xla_counts(max_bond):
    plan = mpo_plan(384, 192, 5, max_bond=max_bond)
    cost = mpo_cost(plan.shapes, plan.central)
    for tokens in (2, 50):
        each = {mode: counted(mode, tokens, plan) for mode in ("rebuild", "sequential")}
        total = cost.rebuild.operations + tokens * cost.dense.operations
        assert each["rebuild"] == pytest.approx(total, rel=0.01)
        total = tokens * cost.sequential.operations
        assert each["sequential"] == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("max_bond", [None, 12, 3])
def test_auto_is_what_costs_less_on_both_sides_of_the_break_even(max_bond):
    plan = mpo_plan(384, 192, 5, max_bond=max_bond)
    near = mpo_cost(plan.shapes, plan.central).break_even
    assert 1 < near < 1000
    for tokens, mode in ((int(near), "sequential"), (int(near) + 1, "rebuild")):
        assert counted("auto", tokens, plan) == counted(mode, tokens, plan)


def test_a_narrow_chain_is_never_rebuilt():
    plan = mpo_plan(384, 1536, max_bond=1)
    assert mpo_cost(plan.shapes, plan.central).break_even == np.inf


def test_experts_are_copies_of_the_kernel_and_each_can_be_taken():
    w = jnp.asarray(matrix(24, 18), jnp.float32)
    experts = share(fit(w, PLAN), 3)
    assert experts.central.ndim == 4 and experts.left[0].shape[0] == experts.experts
    assert np.allclose(experts.materialize(), w[None], atol=1e-5)
    assert np.allclose(experts.expert(2).materialize(), w, atol=1e-5)
    x = jnp.asarray(matrix(3 * 5, 24, 1), jnp.float32).reshape(3, 5, 24)
    for mode in ("rebuild", "sequential"):
        found = dataclasses.replace(experts, mode=mode).dot(x)
        assert np.allclose(found, x @ w, atol=1e-4)
    with pytest.raises(ValueError, match=r"\(3, \.\.\., 24\)"):
        experts.dot(x[:2])


def test_fresh_experts_differ_and_have_the_deviation_asked_for(key):
    experts = fresh_experts(key, PLAN, 3, std=0.5)
    kernels = experts.materialize()
    assert np.allclose(kernels.std((1, 2)), 0.5, rtol=0.2)
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0.1
    norms = jnp.sqrt(jnp.square(kernels).sum((1, 2)))
    assert np.allclose(norms, jnp.linalg.norm(experts.central.ravel()), rtol=1e-4)


def test_an_mpo_can_be_made_of_a_factor_and_stands_in_a_tree():
    w = jnp.asarray(matrix(24, 18), jnp.float32)
    params = factorize(mpo(PLAN), {"wi": {"kernel": w}}, where(".*/kernel"))
    again = factorize(mpo(PLAN), params, where(".*/kernel"))
    assert isinstance(again["wi"]["kernel"], Mpo)
    assert np.allclose(materialize(again)["wi"]["kernel"], w, atol=1e-5)


def test_nothing_is_shared_in_vain():
    one = mpo_plan(24, 18, 1)
    w = jnp.asarray(matrix(24, 18), jnp.float32)
    with pytest.raises(ValueError, match="nothing for an expert"):
        share(fit(w, one), 2)
    with pytest.raises(ValueError, match="nothing for an expert"):
        fresh_experts(jax.random.key(0), one, 2)
    with pytest.raises(ValueError, match="one kernel"):
        share(fit(jnp.stack([w, w]), PLAN), 2)
    with pytest.raises(ValueError, match="experts=0"):
        share(fit(w, PLAN), 0)
    assert isinstance(share(fit(w, PLAN), 1), MpoExperts)
