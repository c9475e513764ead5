"""LRPET: what the projection keeps, when it runs, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from splitjax.core.factor import Factor, materialize, register_factor
from splitjax.core.matrix import Rule, as_matrix
from splitjax.core.stage import join
from splitjax.core.tree import path_name, spec_of
from splitjax.factors.mpo_fit import fit
from splitjax.factors.mpo_plan import mpo_plan
from splitjax.factors.product import Product, svd
from splitjax.factors.smartdeal import SmartDeal
from splitjax.factors.truncated import truncate
from splitjax.metrics.collectives import count_collectives
from splitjax.metrics.macs import macs
from splitjax.models.convolution import Conv, conv
from splitjax.models.dense import Dense
from splitjax.models.resnet import CONFIGS, resnet
from splitjax.optim.energy import energy_project
from splitjax.optim.lrpet import alphas, lrpet, project_params
from splitjax.optim.ranks import at_rank, at_ratio, joined, rank_from_ratio

KEY = jax.random.key(3)


@register_factor
class Doubled(Factor):
    half: jax.Array

    def materialize(self):
        return 2 * self.half


def normal(name, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.fold_in(KEY, name), shape).astype(dtype)


def fading(name, *shape):
    """Of singular values apart from each other: its subspaces are well defined."""
    columns = min(shape[-2:])
    w = normal(name, max(shape[-2:]), columns) * 0.9 ** jnp.arange(1.0 * columns)[None]
    return w if shape[-1] == columns else w.T


def numeric_rank(w, part=1e-5):
    values = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    return int((values > part * values[..., :1]).sum())


def by_svd(w, rank, rho=0.0, transfer=True):
    """The projection as the sheet writes it, in float64."""
    u, s, v = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
    squares, head = np.square(s), s[:rank]
    alpha = (squares.sum() - rho**2 * squares[rank:].sum()) / squares[:rank].sum()
    s = np.concatenate([np.sqrt(alpha if transfer else 1.0) * head, rho * s[rank:]])
    return (u * s) @ v


# (f) 1: energy, rank, idempotence; (f) 2: the Gram form is the decomposition.


@pytest.mark.parametrize("shape", [(64, 144), (144, 64), (48, 48)], ids=str)
def test_energy_and_rank_hold_and_the_gram_form_is_the_svd(shape):
    w = normal(0, *shape)
    project = jax.jit(lambda w: energy_project(w, 12))
    made, alpha = project(w)
    square = lambda a: np.square(np.asarray(a, np.float64)).sum()  # noqa: E731
    assert abs(square(made) / square(w) - 1) < 1e-6
    assert numeric_rank(made) == 12 and float(alpha) > 1
    again, one = project(made)
    # Numbers up to 4, and sums of 64 to 144 products in whatever order.
    np.testing.assert_allclose(again, made, atol=1e-5)
    assert abs(float(one) - 1) < 1e-5
    w = fading(0, *shape)
    np.testing.assert_allclose(project(w).matrix, by_svd(w, 12), atol=1e-5)


def test_the_rest_may_fade_or_the_energy_may_go():
    w = normal(1, 20, 12)
    made = energy_project(w, 4, rho=0.5).matrix
    np.testing.assert_allclose(made, by_svd(w, 4, rho=0.5), atol=1e-5)
    made, alpha = energy_project(w, 4, transfer=False)
    np.testing.assert_allclose(made, by_svd(w, 4, transfer=False), atol=1e-5)
    assert float(alpha) == 1


def test_leading_axes_are_a_batch_and_a_convolution_is_its_matrix():
    stack = normal(2, 3, 5, 20, 12)
    made, alpha = energy_project(stack, 4)
    assert alpha.shape == (3, 5)
    want = energy_project(stack[1, 2], 4).matrix
    np.testing.assert_allclose(made[1, 2], want, atol=1e-6)
    kernel = normal(3, 3, 3, 8, 6)
    new = project_params({"k": kernel}, at_rank("k", 2, layout="conv"))["k"]
    assert numeric_rank(as_matrix(new, "conv")) == 2
    want = by_svd(kernel.reshape(-1, 6), 2).reshape(kernel.shape)
    np.testing.assert_allclose(new, want, atol=1e-5)
    table = normal(4, 100, 6)
    new = project_params({"e": table}, at_rank("e", 2, layout="embedding"))["e"]
    assert numeric_rank(new) == 2


# (f) 3: rectification by the batch norm.


def merged(w, a):
    return np.asarray(w, np.float64) * np.asarray(a, np.float64)


def test_a_norm_decides_what_is_kept():
    errors = []
    for seed in range(5):
        w = normal(10 + seed, 60, 24)
        a = jnp.exp(normal(20 + seed, 24)).at[3].multiply(-1)
        whole = merged(w, a)
        error = [
            np.linalg.norm(merged(made, a) - whole) / np.linalg.norm(whole)
            for made in (
                energy_project(w, 6, transfer=False, scale_out=a, eps=0.0).matrix,
                energy_project(w, 6, transfer=False).matrix,
            )
        ]
        errors.append(error)
    errors = np.array(errors)
    assert (errors[:, 0] <= errors[:, 1]).all()
    assert errors[:, 0].mean() < 0.75 * errors[:, 1].mean()


def test_the_energy_of_the_merged_layer_holds_up_to_the_damping():
    w, a = normal(30, 60, 24), jnp.exp(0.3 * normal(31, 24))
    before = np.square(merged(w, a)).sum()
    whole = np.square(merged(energy_project(w, 6, scale_out=a, eps=0.0).matrix, a))
    for eps in (0.0, 1e-5):
        made = energy_project(w, 6, scale_out=a, eps=eps).matrix
        ratio = np.square(merged(made, a)).sum() / before
        # What the damped inverse takes of each channel, and no more.
        left = np.square(np.square(np.float64(a)) / (np.square(np.float64(a)) + eps))
        assert ratio == pytest.approx((whole * left).sum() / before, abs=1e-6)
        assert ratio == pytest.approx(1, abs=1e-6 if eps == 0 else 1e-4)
        assert numeric_rank(made) == 6
    assert ratio < 1
    left = energy_project(w.T, 6, scale_in=a).matrix
    np.testing.assert_allclose(left.T, made, atol=1e-5)


@pytest.mark.parametrize("transfer", [True, False])
def test_what_the_norm_makes_of_it_is_the_projection_of_the_merged_layer(transfer):
    """In float64 by SVD; with negative scales, and with the damping as written."""
    w = fading(36, 60, 24)
    a = jnp.exp(0.5 * normal(37, 24)) * jnp.where(jnp.arange(24) % 3 == 0, -1.0, 1.0)
    want = by_svd(merged(w, a), 6, transfer=transfer)
    wide = np.float64(a)
    for eps in (0.0, 1e-5, 0.1):
        options = dict(transfer=transfer, scale_out=a, eps=eps)
        made = energy_project(w, 6, **options).matrix
        inverse = wide / (np.square(wide) + eps)
        np.testing.assert_allclose(made, want * inverse, atol=2e-5)


def test_a_channel_that_its_norm_switched_off_keeps_its_part_of_what_is_kept():
    """(g) scale 0: not divided down to zero, and the rank holds. Negative scales."""
    w, a = normal(32, 30, 8), jnp.ones(8).at[2].set(0.0).at[5].set(-2.0)
    made, alpha = energy_project(w, 3, scale_out=a, eps=0.0)
    assert numeric_rank(made, 1e-4) == 3
    directions = np.linalg.svd(np.asarray(made[:, a != 0]), full_matrices=False)[0]
    basis = directions[:, :3]
    want = np.sqrt(float(alpha)) * basis @ (basis.T @ np.asarray(w[:, 2]))
    np.testing.assert_allclose(made[:, 2], want, atol=2e-3)
    off = energy_project(w, 3, scale_out=jnp.zeros(8)).matrix
    np.testing.assert_allclose(off, energy_project(w, 3).matrix, atol=1e-5)


NORMED = {
    "conv": {"kernel": normal(33, 3, 3, 4, 6)},
    "norm": {"scale": jnp.exp(normal(34, 6)), "bias": jnp.zeros(6)},
}
STATISTICS = {"mean": jnp.zeros(6), "var": jnp.exp(normal(35, 6))}


def behind(path):
    return path.removesuffix("/kernel").replace("conv", "norm")


def with_norm(path="conv/kernel"):
    return at_rank(path, 2, layout="conv", norm=behind)


@pytest.mark.parametrize("kind", ["flax", "stage"])
def test_a_norm_is_found_by_its_name(kind):
    params, state = NORMED, {"norm": STATISTICS}
    prefix = ""
    if kind == "stage":  # as the algorithms hold it: segment, stage, collection
        params, prefix = {"0": {"stem": NORMED}}, "0/stem/"
        state = {"0": {"stem": {"batch_stats": state}}}
    select = with_norm(f"{prefix}conv/kernel")
    new = project_params(params, select, model_state=state)
    kernel = new["0"]["stem"]["conv"]["kernel"] if prefix else new["conv"]["kernel"]
    a = NORMED["norm"]["scale"] / jnp.sqrt(STATISTICS["var"] + 1e-5)
    matrix = NORMED["conv"]["kernel"].reshape(36, 6)
    want = energy_project(matrix, 2, scale_out=a).matrix.reshape(3, 3, 4, 6)
    np.testing.assert_allclose(kernel, want, atol=1e-5)


def test_a_norm_or_its_statistics_that_are_not_there():
    with pytest.raises(ValueError, match="statistics are missing"):
        project_params(NORMED, with_norm())
    with pytest.raises(ValueError, match="norm/var"):
        project_params(NORMED, with_norm(), model_state={"other": STATISTICS})
    lost = at_rank("conv/kernel", 2, layout="conv", norm=lambda path: "bn")
    with pytest.raises(ValueError, match="'bn/scale'.*norm/scale"):
        project_params(NORMED, lost, model_state={"norm": STATISTICS})
    tx = optax.chain(optax.sgd(1.0), lrpet(with_norm()))
    opt, grads = tx.init(NORMED), jax.tree.map(jnp.zeros_like, NORMED)
    with pytest.raises(ValueError, match="model_state=batch_stats"):
        tx.update(grads, opt, NORMED)


# (f) 7: when it runs.


TWO = {"w": normal(40, 12, 8), "same": normal(41, 12, 8), "bias": normal(42, 8)}


def trained(tx, steps, numbered=True, params=TWO):
    seen, opt = [], tx.init(params)

    # Not jitted: XLA rounds differently in two programs, and this is about bits.
    def step(params, opt, number):
        grads = jax.tree.map(lambda p: jnp.sin(p * 3), params)
        more = {"step": number} if numbered else {}
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
            updates, opt = tx.update(grads, opt, params, **more)
        return updates, optax.apply_updates(params, updates), opt

    for number in range(steps):
        updates, params, opt = step(params, opt, number)
        seen.append((updates, params, opt))
    return seen


@pytest.mark.parametrize("numbered", [True, False], ids=["step=", "counted"])
def test_steps_without_a_projection_are_those_of_the_inner_one(numbered):
    inner = optax.with_extra_args_support(optax.adam(1e-2))
    tx = optax.chain(inner, lrpet(at_rank("w|same", 3), every=4))
    found, want = trained(tx, 6, numbered), trained(inner, 6, numbered)
    for number, ((updates, params, opt), (same, _, _)) in enumerate(
        zip(found, want, strict=True)
    ):
        if number < 3:
            jax.tree.map(np.testing.assert_array_equal, updates, same)
            assert float(opt[1].alpha["w"]) == 0
        if number == 3:
            assert numeric_rank(params["w"]) == numeric_rank(params["same"]) == 3
            np.testing.assert_array_equal(updates["bias"], same["bias"])
            assert (updates["w"] != same["w"]).any()
            assert float(opt[1].alpha["w"]) > 1
    assert numeric_rank(found[4][1]["w"]) > 3


def test_start_stop_and_the_last_step():
    tx = lrpet(at_rank("w", 3), every=2, start=3, stop=5, last=7)
    found = trained(optax.chain(optax.sgd(1e-2), tx), 8)
    low = [numeric_rank(params["w"]) == 3 for _, params, _ in found]
    assert low == [False, False, False, True, False, False, True, False]


@pytest.mark.parametrize("numbered", [True, False], ids=["step=", "counted"])
def test_nothing_is_decomposed_between_projections_under_vmap(numbered):
    """A branch stays a branch: the decomposition is inside of the conditional."""
    tx = lrpet(at_rank("w", 3), every=4)
    stacked = {"w": normal(43, 5, 12, 8)}
    opt = jax.vmap(tx.init)(stacked)

    def update(grads, opt, params, step):
        more = {"step": step} if numbered else {}
        return tx.update(grads, opt, params, **more)

    many = jax.vmap(update, in_axes=(0, 0, 0, None))
    jaxpr = jax.make_jaxpr(many)(stacked, opt, stacked, 3).jaxpr
    outside = {eqn.primitive.name for eqn in jaxpr.eqns}
    assert "cond" in outside and "eigh" not in outside
    [inside] = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond"]
    texts = [str(branch) for branch in inside.params["branches"]]
    assert ["eigh" in text for text in texts] == [False, True]
    updates, _ = many(jax.tree.map(jnp.zeros_like, stacked), opt, stacked, 3)
    made = stacked["w"] + updates["w"]
    low = [numeric_rank(w) == 3 for w in made]
    assert all(low) if numbered else not any(low)


def test_batched_counts_project_only_where_they_are_due():
    tx = lrpet(at_rank("w", 3), every=4)
    stacked = {"w": normal(44, 3, 12, 8)}
    opt = jax.vmap(tx.init)(stacked)._replace(count=jnp.array([2, 3, 7]))
    still = jax.tree.map(jnp.zeros_like, stacked)
    updates, after = jax.vmap(tx.update)(still, opt, stacked)
    ranks = [numeric_rank(w) for w in stacked["w"] + updates["w"]]
    assert ranks == [8, 3, 3]
    assert (after.alpha["w"] > 0).tolist() == [False, True, True]


# (f) 6: in training, without norms, against truncation at the end.


def test_it_beats_truncation_at_the_end_of_a_plain_run():
    """A net of three layers learns another: the error left, relative to the data's."""

    def forward(params, x):
        for name in ("a", "b", "c"):
            x = x @ params[name]
            x = jnp.tanh(x) if name != "c" else x
        return x

    select, every, steps = at_rank("a|b", 6), 50, 600

    @jax.jit
    def one(seed):
        keys = jax.random.split(jax.random.key(seed), 7)
        shapes = {"a": (16, 32), "b": (32, 32), "c": (32, 4)}

        def fresh(keys):
            return {
                name: jax.random.normal(key, shape) / np.sqrt(shape[0])
                for key, (name, shape) in zip(keys, shapes.items(), strict=True)
            }

        x = jax.random.normal(keys[6], (256, 16))
        y = forward(jax.tree.map(lambda w: 2 * w, fresh(keys[:3])), x)
        loss = lambda p: jnp.square(forward(p, x) - y).mean() / y.var()  # noqa: E731

        def run(tx):
            def step(carry, number):
                params, opt = carry
                grads = jax.grad(loss)(params)
                with jax.numpy_dtype_promotion("standard"):
                    updates, opt = tx.update(grads, opt, params, step=number)
                return (optax.apply_updates(params, updates), opt), None

            start = fresh(keys[3:6])
            (params, _), _ = jax.lax.scan(
                step, (start, tx.init(start)), jnp.arange(steps)
            )
            return params

        rate = optax.cosine_decay_schedule(1e-2, steps)
        plain = run(optax.with_extra_args_support(optax.adam(rate)))
        low = run(optax.chain(optax.adam(rate), lrpet(select, every=every)))
        cut = project_params(plain, select, transfer=False)
        return loss(low), loss(cut), low

    for seed in range(3):
        ours, truncated, params = one(seed)
        assert float(ours) < 0.9 * float(truncated)
        assert [numeric_rank(params[name]) for name in "ab"] == [6, 6]


# (f) 8: sharded.


@pytest.mark.parametrize("axis", [0, 1], ids=["tall", "wide"])
def test_sharded_along_its_long_side_only_the_gram_matrix_is_reduced(axis):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    shape = (1024, 64) if axis == 0 else (64, 1024)
    spec = P("model", None) if axis == 0 else P(None, "model")
    w = fading(50, *shape)
    placed = jax.device_put(w, NamedSharding(mesh, spec))
    tx = lrpet(at_rank("w", 16), every=1)
    opt = tx.init({"w": w})
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, step=0)[0]["w"] + p["w"])
    still = jnp.zeros_like(placed)
    program = step.lower({"w": still}, opt, {"w": placed}).compile()
    [reduced] = count_collectives(program)
    assert reduced.op == "all-reduce" and reduced.shape == ("f32[1,64,64]",)
    found = step({"w": still}, opt, {"w": placed})
    assert found.sharding.is_equivalent_to(placed.sharding, 2)
    np.testing.assert_allclose(found, energy_project(w, 16).matrix, atol=1e-5)


def test_a_convolution_is_sharded_by_its_input_channels():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    kernel = fading(51, 288, 16).reshape(3, 3, 32, 16)
    sharding = NamedSharding(mesh, P(None, None, "model", None))
    placed = jax.device_put(kernel, sharding)
    select = at_rank("k", 4, layout="conv")
    project = jax.jit(lambda k: project_params({"k": k}, select)["k"])
    [reduced] = count_collectives(project.lower(placed).compile())
    assert reduced.op == "all-reduce"
    np.testing.assert_allclose(project(placed), project(kernel), atol=1e-5)


# (g): bad input.


def test_a_rank_from_the_full_one_on_changes_nothing():
    w = normal(60, 6, 4)
    for rank in (4, 9):
        made, alpha = energy_project(w, rank)
        assert made is w and float(alpha) == 1


@pytest.mark.parametrize(
    ("kind", "alpha"), [("full rank", 1), ("nothing", 0), ("nan", 0), ("inf", 0)]
)
def test_what_is_not_projected_keeps_its_update_to_the_bit(kind, alpha):
    """`(p + u) - p` would be rounded. And the flag says so: an alpha of 0, or of 1."""
    w = (1e-6 if kind == "nothing" else 3.0) * normal(60, 6, 4)
    if kind in ("nan", "inf"):
        w = w.at[2, 1].set(float(kind))
    u = (1e-8 if kind == "nothing" else 1e-7) * normal(64, 6, 4)
    rank = 4 if kind == "full rank" else 2
    tx = lrpet(at_rank("w", rank), every=1)
    run = jax.jit(lambda u, s, p: tx.update(u, s, p, step=0))
    updates, opt = run({"w": u}, tx.init({"w": w}), {"w": w})
    rest = np.isfinite(w)
    np.testing.assert_array_equal(updates["w"][rest], u[rest])
    assert float(opt.alpha["w"]) == alpha
    assert (np.asarray(w + u - w)[rest] != np.asarray(u)[rest]).any()


def test_a_rank_below_one():
    with pytest.raises(ValueError, match="rank 0.*needs a floor"):
        Rule(0)
    with pytest.raises(ValueError, match="rank=0"):
        energy_project(jnp.ones((3, 3)), 0)
    with pytest.raises(ValueError, match="rank nan: it must be 1 or more"):
        Rule(float("nan"))
    with pytest.raises(ValueError, match=r"ratio of 0.6 .*\(5, 2\).*floor=1, or leave"):
        rank_from_ratio((5, 2), 0.6)
    thin = {"wide": jnp.ones((9, 9)), "thin": jnp.ones((5, 2))}
    with pytest.raises(ValueError, match="'thin': a ratio of 0.6 .*floor=1"):
        at_ratio(".*", 0.6)(thin)
    with pytest.raises(ValueError, match="'thin': rank 0: .*needs a floor"):
        at_rank(".*", lambda shape: shape[-1] // 3)(thin)
    assert rank_from_ratio((5, 2), 0.6, floor=1) == 1
    assert rank_from_ratio((64, 64), 0.9, floor=18) == 18
    assert rank_from_ratio((9, 9), 0.5, floor=18) == 9


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=f"ratio {ratio}: .*0 or more, and below 1"):
        rank_from_ratio((8, 8), ratio)


@pytest.mark.parametrize("size", [0.0, 1e-7])
def test_a_matrix_of_almost_nothing_stays(size):
    w = size * normal(61, 8, 6)
    made, alpha = jax.jit(lambda w: energy_project(w, 2))(w)
    np.testing.assert_array_equal(made, w)
    assert float(alpha) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=str)
def test_what_is_not_finite_passes_and_is_flagged(bad):
    stack = normal(62, 2, 8, 6).at[1, 2, 3].set(bad)
    made, alpha = energy_project(stack, 2)
    np.testing.assert_array_equal(made[1], stack[1])
    assert alpha[1] == 0 and numeric_rank(made[0]) == 2 and alpha[0] > 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=str)
def test_what_is_not_finite_is_never_decomposed(bad, monkeypatch):
    """LAPACK may not come back from it: what reaches it is finite."""
    inner, seen = jnp.linalg.eigh, []

    def watched(gram):
        seen.append(np.asarray(gram))
        return inner(gram)

    monkeypatch.setattr(jnp.linalg, "eigh", watched)
    energy_project(normal(65, 2, 8, 6).at[1, 2, 3].set(bad), 2)
    assert [gram.shape for gram in seen] == [(2, 6, 6)] and np.isfinite(seen).all()


def test_equal_singular_values_are_no_trouble():
    """The subspace is not unique: what is asked is rank and energy."""
    made, alpha = energy_project(jnp.eye(6), 2)
    assert numeric_rank(made) == 2 and round(float(alpha), 5) == 3
    assert abs(float(jnp.square(made).sum()) - 6) < 1e-5


def test_bfloat16_is_projected_in_float32():
    w = normal(63, 32, 16, dtype=jnp.bfloat16)
    made, alpha = energy_project(w, 4)
    assert made.dtype == jnp.bfloat16 and alpha.dtype == jnp.float32
    want = energy_project(w.astype(jnp.float32), 4).matrix
    np.testing.assert_array_equal(made, want.astype(jnp.bfloat16))


def test_params_are_needed():
    tx = lrpet(at_rank("w", 3))
    with pytest.raises(ValueError, match="needs params"):
        tx.update(TWO, tx.init(TWO))


@pytest.mark.parametrize(
    "options",
    [dict(every=0), dict(start=-1), dict(rho=1.5), dict(start=5, stop=4)],
    ids=str,
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="lrpet"):
        lrpet(at_rank("w", 3), **options)


def test_rows_that_count_for_more_decide_what_is_kept():
    """The metric of FWSVD: in training and at once, by path, and beside a norm."""
    params = {name: normal(n, 30, 20) for n, name in enumerate("abc")}
    params["n"] = {"scale": jnp.exp(normal(9, 20))}
    state = {"n": {"var": jnp.ones(20)}}
    rows = {name: jnp.exp(normal(n, 30)) for n, name in enumerate("ab", 5)}
    plan = {name: Rule(6) for name in "ac"} | {"b": Rule(6, norm="n", eps=0.0)}
    made = project_params(params, plan, model_state=state, scale_in=rows)
    want = {
        "a": energy_project(params["a"], 6, scale_in=rows["a"]),
        "b": energy_project(
            params["b"], 6, scale_in=rows["b"], scale_out=params["n"]["scale"]
        ),
        "c": energy_project(params["c"], 6),
    }
    tx = lrpet(plan, every=1, scale_in=rows)
    still, opt = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    updates, opt = tx.update(still, opt, params, model_state=state)
    for name, one in want.items():
        np.testing.assert_allclose(made[name], one.matrix, atol=1e-5)
        np.testing.assert_allclose(params[name] + updates[name], one.matrix, atol=1e-5)
        assert alphas({"inner": (opt,)})[name] == pytest.approx(float(one.alpha))
    plain = energy_project(params["a"], 6).matrix
    assert jnp.abs(made["a"] - plain).max() > 0.1
    assert alphas(optax.sgd(0.1).init(params)) == {}
    for wrong, message in (
        ({"d": rows["a"]}, "scale_in has 'd', which has no rank"),
        ({"a": rows["a"][:3]}, r"is \(3,\); its matrix has the rows \(30,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            lrpet(plan, scale_in=wrong).init(params)


def test_a_choice_that_does_not_fit():
    with pytest.raises(ValueError, match="'bias'.*too few axes"):
        lrpet(at_rank(".*", 3)).init(TWO)
    with pytest.raises(ValueError, match="(?s)W.*same"):
        lrpet(at_rank("W", 3)).init(TWO)
    with pytest.raises(ValueError, match="did you mean 'same'"):
        lrpet({"sam": Rule(2)}).init(TWO)
    with pytest.raises(ValueError, match="layout 'con'.*'conv'"):
        at_rank("w", 3, layout="con")(TWO)
    with pytest.raises(ValueError, match="depthwise"):
        at_rank("k", 3, layout="conv")({"k": jnp.ones((3, 3, 1, 16))})
    with pytest.raises(ValueError, match="'n' is int32: only floats"):
        at_rank("n", 3)({"n": jnp.ones((4, 4), jnp.int32)})
    with pytest.raises(ValueError, match="chosen twice: w"):
        joined(at_rank("w", 3), at_rank("w|same", 2))(TWO)
    with pytest.raises(ValueError, match="no ratio for 'same'"):
        at_ratio("w|same", {"w": 0.5})(TWO)
    with pytest.raises(ValueError, match="matrix of floats"):
        energy_project(jnp.ones((3, 3), jnp.int32), 1)


# (f) 4 and 5: what a low rank costs, and its export.

# Sheet, 1(c): multiply-adds in millions, parameters in millions (norms left out).
COSTS = {
    "resnet56": (0.57, "56.06", "0.394"),
    "resnet110": (0.65, "93.78", "0.655"),
    "resnet18": (0.58, "860.9", "5.814"),
    "resnet34": (0.58, "1715.4", "10.511"),
    "resnet50": (0.62, "1902.9", "12.887"),
}
SLOW = ("resnet110", "resnet34", "resnet50")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in COSTS],
)
def test_the_published_costs_to_the_printed_digits(name):
    ratio, millions, parameters = COSTS[name]
    small = name in ("resnet56", "resnet110")
    config, size, classes = CONFIGS[name], 32, 10
    if not small:
        config = dataclasses.replace(config, stem="imagenet")
        size, classes = 224, 1000
    stages = join(resnet(config, classes))
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params, state = jax.eval_shape(lambda: stages.init(jax.random.key(0), spec_of(x)))
    convs = ".*/(conv|conv_.|skip_conv)/kernel"
    low = truncate(params, at_ratio(convs, ratio, layout="conv"))
    counted = macs(
        lambda p, s, x: stages.apply(p, s, x, key=None, train=False)[0], low, state, x
    )
    rows = jax.tree_util.tree_leaves_with_path(low)
    held = sum(a.size for path, a in rows if "norm" not in path_name(path))
    digits = len(millions.partition(".")[2])
    assert f"{counted / 1e6:.{digits}f}" == millions
    assert f"{held / 1e6:.3f}" == parameters


@pytest.mark.parametrize("stride", [1, 2])
def test_a_factored_convolution_is_the_projected_one(stride):
    layer = conv(6, 3, "conv", stride=stride)
    x = normal(70, 2, 9, 9, 8)
    params = layer.init(KEY, x)["params"]
    params = {"kernel": params["kernel"], "bias": normal(71, 6)}
    select = at_rank("kernel", 2, layout="conv")
    low = project_params(params, select)
    factored = truncate(low, select)
    want = layer.apply({"params": low}, x)
    found = layer.apply({"params": factored}, x)
    assert isinstance(factored["kernel"], Product) and factored["bias"] is low["bias"]
    np.testing.assert_allclose(found, want, atol=1e-5)
    np.testing.assert_allclose(
        materialize(factored)["kernel"], low["kernel"], atol=1e-6
    )
    # A factor that is no product, and one with a product for each place.
    for other in (Doubled(low["kernel"] / 2), svd(low["kernel"], 6)):
        found = layer.apply({"params": {**low, "kernel": other}}, x)
        np.testing.assert_allclose(found, want, atol=1e-5)
    with pytest.raises(ValueError, match="for one group"):
        conv(7, 3, "conv").apply({"params": factored}, x)


@pytest.mark.parametrize(
    "window",
    [
        dict(padding="VALID", strides=2),
        dict(padding="SAME", kernel_dilation=2),
        dict(padding=((2, 0), (1, 3)), strides=(2, 1), kernel_dilation=(1, 2)),
    ],
    ids=str,
)
def test_a_factored_convolution_keeps_its_window(window):
    """Padding, stride and dilation; sheet 1(d) 5: the reference's export loses some."""
    layer, x = Conv(6, (3, 3), **window), normal(77, 2, 11, 10, 8)
    params = {"kernel": normal(78, 3, 3, 8, 6), "bias": normal(79, 6)}
    select = at_rank("kernel", 2, layout="conv")
    low = project_params(params, select)
    found = layer.apply({"params": truncate(low, select)}, x)
    plain = nn.Conv(6, (3, 3), **window).apply({"params": low}, x)
    np.testing.assert_allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize("channels", [4, 8], ids=["as its kernel", "of all channels"])
def test_a_convolution_of_groups_has_no_factor(channels):
    plan = {"k": Rule(2, layout="conv")}
    kernel = truncate({"k": normal(81, 3, 3, channels, 6)}, plan)["k"]
    layer = Conv(6, (3, 3), feature_group_count=2, use_bias=False)
    with pytest.raises(ValueError, match="of 2 groups: factors are for one group"):
        layer.apply({"params": {"kernel": kernel}}, jnp.ones((1, 5, 5, 8)))


def test_a_factored_dense_layer_is_the_projected_one():
    layer, x = Dense(6), normal(72, 5, 8)
    params = {"kernel": normal(73, 8, 6), "bias": normal(74, 6)}
    select = at_rank("kernel", 2)
    low = project_params(params, select)
    found = layer.apply({"params": truncate(low, select)}, x)
    np.testing.assert_allclose(found, layer.apply({"params": low}, x), atol=1e-5)


def test_an_export_of_zeros_and_of_what_saves_nothing():
    """Sheet 1(d) 3: a layer of zeros is exported as zeros, not as the identity."""
    params = {"z": jnp.zeros((3, 3, 8, 6)), "w": normal(75, 8, 6)}
    plan = {"z": Rule(2, layout="conv"), "w": Rule(5)}
    new = truncate(params, plan)
    assert isinstance(new["z"], Product) and not new["z"].materialize().any()
    assert new["w"] is params["w"]
    stack = {"k": normal(76, 4, 3, 3, 8, 6)}
    low = project_params(stack, {"k": Rule(2, layout="conv")})
    made = truncate(low, {"k": Rule(2, layout="conv")})["k"]
    np.testing.assert_allclose(made.materialize(), low["k"], atol=1e-5)
    with pytest.raises(ValueError, match="'w': the kernel holds NaN"):
        truncate({"w": params["w"].at[0, 0].set(jnp.nan)}, {"w": Rule(1)})


def test_an_export_of_what_is_not_there_or_a_factor_already():
    kernel = normal(75, 24, 24)
    with pytest.raises(ValueError, match="no leaf 'wi': did you mean 'w'"):
        truncate({"w": kernel}, {"wi": Rule(2)})
    codes = SmartDeal(jnp.ones((24, 1, 8, 3)), jnp.ones((24, 1, 3, 3)), (24,))
    low = {"w": svd(kernel, 12), "e": {"kernel": codes}}
    for name in ("w", "w/a", "e/kernel", "e/kernel/codes"):
        kind = "Product" if name[0] == "w" else "SmartDeal"
        with pytest.raises(ValueError, match=f"'{name}' is of a {kind} already"):
            truncate(low, {name: Rule(2)})
    core = {"core": normal(75, 3, 4, 4, 9)}
    with pytest.raises(ValueError, match="'core' has the layout 'core'.*max_bond"):
        truncate(core, {"core": Rule(2, layout="core")})


def test_on_a_core_of_an_mpo_it_is_a_bond_of_fewer_directions():
    """Section 0: a core's layout is its last bond against the rest."""
    factor = fit(normal(80, 12, 8), mpo_plan(12, 8, 3))
    params = {"kernel": factor}
    select = at_rank("kernel/central", 3, layout="core")
    new = project_params(params, select)["kernel"]
    cores = (np.asarray(f.central) for f in (new, factor))
    core, before = (c.reshape(-1, c.shape[-1]) for c in cores)
    assert numeric_rank(before) > 3 == numeric_rank(core)
    assert np.square(core).sum() == pytest.approx(np.square(before).sum(), rel=1e-5)
    assert new.left[0] is factor.left[0] and new.spec.shape == (12, 8)
