"""Which transforms of parameters go together, pair by pair, and which do not.

The rows are those of the table in the specification of factors; A -> B means that B is
applied to what A made.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.factor import dot, factorize, is_factor, materialize
from splitjax.core.owners import owners
from splitjax.core.split import Split
from splitjax.core.stage import join
from splitjax.core.tree import spec_of, where
from splitjax.factors import lora
from splitjax.factors.low_rank import low_rank, squeeze_params
from splitjax.factors.mpo_fit import mpo, share
from splitjax.factors.mpo_plan import mpo_plan
from splitjax.factors.nested import Nested
from splitjax.factors.product import Product, svd
from splitjax.factors.rescue import factorize_weighted
from splitjax.factors.smartdeal import SmartDeal, fit, smartdeal
from splitjax.factors.smartdeal_pack import pack, unpack
from splitjax.factors.smartdeal_train import keep_near, project
from splitjax.factors.weighted import entries, rows
from splitjax.metrics.loss import squared_error
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.mlp import mlp
from splitjax.models.squeeze import Squeeze
from splitjax.optim.energy import energy_project
from splitjax.optim.lrpet import lrpet, project_params
from splitjax.optim.ranks import at_rank
from splitjax.storage.checkpoint import Checkpoints

KEY = jax.random.key(0)
WIDTH = 12
PLAN = mpo_plan(WIDTH, WIDTH, 2)


def normal(name, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, name), shape)


def rank(matrix):
    values = np.linalg.svd(np.float64(matrix), compute_uv=False)
    return int((values > 1e-5 * values[0]).sum())


def adapted(kernel):
    made = lora.fit(kernel, KEY, rank=2, alpha=4)
    return dataclasses.replace(made, b=normal(9, 2, WIDTH))


FITS = {
    "low_rank": low_rank(4),
    "product": lambda kernel: svd(kernel, 4),
    "mpo": mpo(PLAN),
    "lora": adapted,
    "lora of a low rank": lambda kernel: adapted(low_rank(4)(kernel)),
    "smartdeal": smartdeal(0.1, span=2),
    "smartdeal of a product": lambda k: smartdeal(0.1, span=2)(svd(k, 12)),
    "smartdeal of an mpo": lambda k: smartdeal(0.1, span=2)(mpo(PLAN)(k)),
}
STAGES = mlp([WIDTH] * (len(FITS) + 1) + [1])
STATE = {stage.name: {} for stage in STAGES}


@functools.cache
def network():
    """One layer of each kind of factor, half of them on either side of a cut."""
    params, _ = join(STAGES).init(KEY, jax.ShapeDtypeStruct((6, WIDTH), jnp.float32))
    for index, fit_one in enumerate(FITS.values()):
        name = f"dense_{index}/dense/kernel"
        params = factorize(fit_one, params, where(name))
    return params, normal(1, 6, WIDTH)


# --- LRPET -> the split cut


def test_lrpet_then_the_cut_the_export_is_the_function_and_r_numbers_cross():
    """The rank rule of training is the width of the wire."""
    sizes = dict(vocab=20, width=8, heads=2, layers=1, ffn=12, positions=6)
    still = dict(init_std=0.3, dropout=0.0, attention_dropout=0.0)
    config = BertConfig(**sizes, **still, skipless=(0,))
    x = {"ids": jnp.arange(10).reshape(2, 5), "mask": jnp.ones((2, 5), bool)}
    whole, parted = bert(config), bert(config, squeeze={0: Squeeze(3)})
    params, _ = jax.jit(lambda key: join(whole).init(key, spec_of(x)))(KEY)
    low = project_params(params, at_rank("layer_0/ffn/wi/kernel", 3))
    assert rank(low["layer_0/ffn"]["wi"]["kernel"]) == 3
    edge, cloud = squeeze_params(low["layer_0/ffn"], 3)
    own = {n: low[n] for n in low if n != "layer_0/ffn"}
    own |= {"layer_0/squeeze": edge, "layer_0/expand": cloud}

    def run(stages, params):
        state = {stage.name: {} for stage in stages}
        model = join(stages)
        own = {name: params[name] for name in state}
        apply = jax.jit(lambda p: model.apply(p, state, x, key=None, train=False)[0])
        return apply(own)["h"]

    np.testing.assert_allclose(run(parted, own), run(whole, low), atol=1e-5)
    assert np.abs(run(parted, own) - run(whole, params)).max() > 0.01
    crosses = jax.eval_shape(lambda: run(parted[:-1], own))
    assert crosses.shape == (2, 5, 3)


# --- WSVD -> LRPET


def test_wsvd_then_lrpet_keeps_the_start_and_then_the_rank():
    """At the start LRPET changes nothing; then it keeps the rank, and SGD does not."""
    weights = {"w": jnp.square(normal(2, WIDTH, 8)), "b": None}
    params = {"w": normal(3, WIDTH, 8), "b": jnp.zeros(8)}
    start = materialize(
        factorize(entries(3, iterations=5), params, where("w"), weights)
    )
    same = project_params(start, at_rank("w", 3))
    np.testing.assert_allclose(same["w"], start["w"], atol=1e-5)
    plain = svd(params["w"], 3).materialize()
    assert np.abs(start["w"] - plain).max() > 0.01  # another subspace than SVD's
    grads = {"w": normal(4, WIDTH, 8), "b": jnp.ones(8)}
    for tail, want in ((optax.identity(), 8), (lrpet(at_rank("w", 3), every=1), 3)):
        tx = optax.chain(optax.sgd(0.1), optax.with_extra_args_support(tail))
        updates, _ = tx.update(grads, tx.init(start), start, step=0)
        assert rank(optax.apply_updates(start, updates)["w"]) == want


def test_wsvd_then_lrpet_stays_low_and_its_metric_is_plain_unless_it_is_given():
    """Over steps; with the root of a Fisher's row sums it is the metric of FWSVD."""
    kernel, weights = normal(3, WIDTH, 8), jnp.exp(2 * normal(2, WIDTH, 8))
    start = {"w": entries(3, iterations=5)(kernel, weights).materialize()}
    root = {"w": jnp.sqrt(weights.sum(1))}
    plan, step = at_rank("w", 3), 0.1 * normal(4, WIDTH, 8)
    ends = {}
    for name, tail, want in (
        ("sgd", optax.identity(), 8),
        ("plain", lrpet(plan, every=1), 3),
        ("rows", lrpet(plan, every=1, scale_in=root, damping=0.0), 3),
    ):
        tx = optax.with_extra_args_support(tail)
        params, state = start, tx.init(start)
        for number in range(5):
            updates, state = tx.update({"w": step}, state, params, step=number)
            ends.setdefault(name, params["w"] + updates["w"])
            params = optax.apply_updates(params, updates)
            assert rank(params["w"]) == want
    moved = start["w"] + step
    plain = energy_project(moved, 3).matrix
    by_rows = energy_project(moved, 3, scale_in=root["w"], eps=0.0).matrix
    np.testing.assert_allclose(ends["plain"], plain, atol=1e-5)
    np.testing.assert_allclose(ends["rows"], by_rows, atol=1e-5)
    assert np.abs(by_rows - plain).max() > 0.01


# --- MPO -> LRPET


def test_mpo_then_lrpet_truncates_a_bond_and_keeps_the_core_s_energy():
    params = {"kernel": mpo(mpo_plan(WIDTH, WIDTH, 2))(normal(5, WIDTH, WIDTH))}
    at = [n for n in owners(params) if n.startswith("kernel/")]
    name = next(n for n in at if "left" in n or "central" in n)
    core = params["kernel"].left[0] if "left" in name else params["kernel"].central
    new = project_params(params, at_rank(name, 2, layout="core"))
    made = new["kernel"]
    changed = made.left[0] if "left" in name else made.central
    assert rank(changed.reshape(-1, changed.shape[-1])) == 2 < core.shape[-1]
    np.testing.assert_allclose(
        jnp.linalg.norm(changed), jnp.linalg.norm(core), rtol=1e-5
    )
    # As the kernel sees it: the matrix that the bond parts has the rank of the bond.
    i, j = core.shape[1:3]
    dense = made.materialize().reshape(i, WIDTH // i, j, WIDTH // j)
    assert rank(dense.transpose(0, 2, 1, 3).reshape(i * j, -1)) == 2


@pytest.mark.parametrize("make", ["mpo", "experts"])
def test_mpo_then_lrpet_on_other_axes_is_refused(make):
    factor = mpo(PLAN)(normal(5, WIDTH, WIDTH))
    factor = share(factor, 3) if make == "experts" else factor
    params = {"kernel": factor}
    tx = lrpet(at_rank("kernel/central", 2), every=1)
    with pytest.raises(ValueError, match="'kernel/central'.*'core'.*bond"):
        tx.init(params)


def test_wsvd_of_an_mpo_s_cores_is_refused():
    """A weight for each entry of a kernel is no weight of its cores."""
    params = {"kernel": mpo(PLAN)(normal(5, WIDTH, WIDTH))}
    squares = jax.tree.map(jnp.square, params)
    for fit_one in (rows(2), entries(2)):
        with pytest.raises(ValueError, match="Mpo.*products"):
            factorize(fit_one, params, where("kernel"), squares)


# --- LowRank, MPO -> SmartDeal


def test_low_rank_then_smartdeal_errors_add():
    """|W - W'| <= tail + |A| dB + |B| dA + dA dB, in spectral norms."""
    kernel = normal(6, 24, 24)
    low = svd(kernel, 12)
    one = fit(low, theta=0.02, span=2)
    made = one.rebuilt

    def norm(m):
        return np.linalg.norm(np.float64(m), 2)

    tail = np.linalg.svd(np.float64(kernel), compute_uv=False)[12]
    da, db = norm(made.a - low.a), norm(made.b - low.b)
    bound = tail + norm(low.a) * db + norm(low.b) * da + da * db
    found = norm(one.materialize() - kernel)
    assert isinstance(one.outer.a, SmartDeal) and isinstance(one.outer.b, SmartDeal)
    assert tail < found <= bound


def spectral(m):
    return np.linalg.norm(np.float64(m), 2)


def encoded(one):
    nodes = jax.tree.leaves(one, is_leaf=lambda n: isinstance(n, SmartDeal))
    return sum(isinstance(node, SmartDeal) for node in nodes)


def test_low_rank_of_three_then_smartdeal_errors_add():
    """Of v, s and u: what all three may be off, less their product."""
    kernel = normal(6, 24, 24)
    low = low_rank(12)(kernel)
    one = fit(low, theta=0.02, span=2)
    assert encoded(one) == 3
    tail = np.linalg.svd(np.float64(kernel), compute_uv=False)[12]
    pairs = list(zip(jax.tree.leaves(low), jax.tree.leaves(one.rebuilt), strict=True))
    sizes = np.array([spectral(a) for a, _ in pairs])
    off = np.array([spectral(b - a) for a, b in pairs])
    bound = tail + (sizes + off).prod() - sizes.prod()
    v, s, u = (np.float64(b) for _, b in pairs)
    np.testing.assert_allclose(one.materialize(), v @ s @ u, atol=1e-4)
    assert tail < spectral(one.materialize() - kernel) <= bound


@pytest.mark.parametrize("max_bond", [None, 8])
def test_mpo_then_smartdeal_encodes_the_cores_and_errors_add(max_bond):
    """As the bond parts the matrix: |L| dR + |R| dL + dL dR, and the bond's tail."""
    kernel, plan = normal(5, 24, 24), mpo_plan(24, 24, 2, max_bond=max_bond)
    factor = mpo(plan)(kernel)
    one = fit(factor, theta=0.02, span=2)
    assert encoded(one) == 2 and one.spec == factor.spec
    d = plan.bonds[1]

    def unfolded(factor):
        return factor.left[0].reshape(-1, d), factor.central.reshape(d, -1)

    def parted(dense):
        i, j = plan.in_factors[0], plan.out_factors[0]
        turned = np.float64(dense).reshape(i, 24 // i, j, 24 // j).transpose(0, 2, 1, 3)
        return turned.reshape(i * j, -1)

    (left, right), (new_left, new_right) = unfolded(factor), unfolded(one.rebuilt)
    np.testing.assert_allclose(parted(factor.materialize()), left @ right, atol=1e-5)
    new = np.float64(new_left) @ np.float64(new_right)
    np.testing.assert_allclose(parted(one.materialize()), new, atol=1e-4)
    values = np.linalg.svd(parted(kernel), compute_uv=False)
    tail = values[d] if d < len(values) else 0.0
    dl, dr = spectral(new_left - left), spectral(new_right - right)
    bound = tail + spectral(left) * dr + spectral(right) * dl + dl * dr
    assert tail < spectral(parted(one.materialize() - kernel)) <= bound
    assert bound < 2 * values[0]  # it says something


# --- SmartDeal -> anything


@pytest.mark.parametrize("kind", ["smartdeal", "smartdeal of a product"])
@pytest.mark.parametrize(
    "then",
    [low_rank(2), smartdeal(0.1), mpo(PLAN), adapted, rows(2), entries(2)],
    ids=["low_rank", "smartdeal", "mpo", "lora", "fwsvd", "wsvd"],
)
def test_nothing_is_fitted_to_smartdeal(kind, then):
    params = {"kernel": FITS[kind](normal(7, WIDTH, WIDTH))}
    with pytest.raises(ValueError, match="kernel is closed: .*powers of two"):
        factorize(then, params, where("kernel"))


def test_no_projection_works_on_smartdeal_s_codes():
    params = {"kernel": FITS["smartdeal"](normal(7, WIDTH, WIDTH))}
    choice = where("kernel/codes")
    with pytest.raises(ValueError, match="kernel is closed"):
        factorize_weighted(params, {"kernel": jnp.ones((WIDTH,) * 2)}, where(".*"), 2)
    for broken in (
        lambda: lrpet(at_rank("kernel/codes", 1), every=1).init(params),
        lambda: project_params(params, at_rank("kernel/codes", 1)),
        lambda: project(params, choice, theta=0.1),
        lambda: keep_near(choice, every=1, theta=0.1).update(
            jax.tree.map(jnp.zeros_like, params), (), params, step=0
        ),
    ):
        with pytest.raises(ValueError, match="kernel/codes is closed"):
            broken()
    # The dense kernel is free again.
    free = factorize(low_rank(2), materialize(params), where("kernel"))
    assert rank(free["kernel"].materialize()) == 2


def test_a_factor_may_be_fitted_again_as_the_kernel_it_stands_for():
    """Others than SmartDeal are real numbers: what is fitted is their product."""
    params = {"kernel": low_rank(6)(normal(7, WIDTH, WIDTH))}
    new = factorize(lambda kernel: svd(materialize(kernel), 2), params, where("kernel"))
    assert isinstance(new["kernel"], Product)
    want = svd(params["kernel"].materialize(), 2).materialize()
    np.testing.assert_allclose(new["kernel"].materialize(), want, atol=1e-5)


# --- a factor at the cut


def test_factors_on_both_sides_of_a_cut_learn_as_in_one_model():
    params, x = network()
    target = {"y": jnp.ones(6), "n_valid": jnp.int32(6)}

    def loss(y, target):
        return squared_error(y[:, 0], target)

    def whole(params):
        y = join(STAGES).apply(params, STATE, x, key=None, train=True)[0]
        return loss(y, target)[0]

    made = cut(STAGES, after="dense_3")
    split = Split(made, (Link(chain(), chain()),), loss)
    parts, state = made.partition(params), made.partition(STATE)
    ends = split.init_links(parts, state, spec_of(x))
    run = jax.jit(lambda p: split.value_and_grad(p, state, ends, x, target, key=KEY))
    (value, _), grads = run(parts)
    want, dense = jax.jit(jax.value_and_grad(whole))(params)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    got = made.merge(grads)
    assert jax.tree.structure(got) == jax.tree.structure(dense)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))

    jax.tree.map(close, got, dense)
    for part in grads:
        assert any(map(is_factor, jax.tree.leaves(part, is_leaf=is_factor)))


# --- any -> checkpoint, move


def test_a_checkpoint_gives_back_a_tree_of_all_kinds(tmp_path):
    params, _ = network()
    state = optax.sgd(0.1, momentum=0.9).init(params)
    store = Checkpoints(tmp_path, {})
    store.save(1, {"params": params, "opt": state}, {})
    like = jax.tree.map(jnp.zeros_like, {"params": params, "opt": state})
    back, _ = store.restore(like)
    assert jax.tree.structure(back) == jax.tree.structure(like)
    jax.tree.map(np.testing.assert_array_equal, back["params"], params)
    kinds = {type(n) for n in jax.tree.leaves(back, is_leaf=is_factor) if is_factor(n)}
    assert len(kinds) >= 6


def test_a_checkpoint_of_factors_needs_a_target_of_factors(tmp_path):
    params, _ = network()
    store = Checkpoints(tmp_path, {})
    store.save(1, params, {})
    with pytest.raises(ValueError):
        store.restore(jax.tree.map(jnp.zeros_like, materialize(params)))


def test_what_moves_is_the_packed_form_and_the_arrays_of_the_others():
    params, x = network()
    packed = pack(params)
    sent = sum(
        len(leaf) if isinstance(leaf, bytes) else leaf.nbytes
        for leaf in jax.tree.leaves(packed)
    )
    assert sent < sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    back = unpack(packed)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    kernel = back["dense_5"]["dense"]["kernel"]
    np.testing.assert_array_equal(
        dot(kernel, x), dot(params["dense_5"]["dense"]["kernel"], x)
    )


def test_the_table_is_of_the_factors_there_are():
    params, _ = network()
    nodes = [n for n in jax.tree.leaves(params, is_leaf=is_factor) if is_factor(n)]
    assert len(nodes) == len(FITS) and isinstance(nodes[-1], Nested)
