"""DP-KFAC on a mesh of eight devices: the sheet's nine claims."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from splitjax.core.tree import flat
from splitjax.metrics.collectives import count_collectives
from splitjax.metrics.memory import device_bytes
from splitjax.optim import check_taps, dp_kfac, with_taps
from splitjax.optim.curvature import TAPS, watch
from splitjax.optim.kfac_mesh import on_owner, reshard, state_specs
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.storage.checkpoint import Checkpoints
from tests.parallel.jobs import job

LAYERS, WIDTH, LOCAL = 6, 5, 4
SETTINGS = dict(damping=0.1, ema_old=0.6, kl_clip=1e-3, learning_rate=0.3)


def start(layers=LAYERS, bias=True, seed=0):
    rng, made = np.random.default_rng(seed), {}
    for i in range(layers):
        kernel = rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
        made[f"layer_{i}"] = {"kernel": jnp.asarray(kernel, jnp.float32)}
        if bias:
            row = rng.normal(size=WIDTH) / 4
            made[f"layer_{i}"]["bias"] = jnp.asarray(row, jnp.float32)
    return with_taps(made)


def data(rows, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(2, rows, WIDTH)), jnp.float32)


def loss(params, batch):
    """A chain of h + tanh(h W + b)."""
    h, y = batch
    for layer in params.values():

        def dense(x, layer=layer):
            z = x @ layer["kernel"]
            return z + layer["bias"][None] if "bias" in layer else z

        h = h + jnp.tanh(watch(dense, h, layer.get(TAPS)))
    return jnp.square(h - y).sum(-1).mean() / 2


def on_mesh(width, tx_options, method="cholesky", check_vma=True, params=None):
    """A step on so many devices, and its first parameters and state."""
    mesh = make_cloud_mesh(f"data={width}", devices=jax.devices()[:width])
    inner = optax.sgd(0.3)
    tx = dp_kfac(
        inner, method=method, axis_name="data", shards=width, **SETTINGS | tx_options
    )
    params = start() if params is None else params
    state = tx.init(params)
    specs = state_specs(state, "data")

    def step(params, state, batch):
        here = on_owner(params, "data", width)
        grads = jax.grad(loss)(here, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(P(), specs, P(None, "data")),
        out_specs=(P(), specs),
        check_vma=check_vma,
    )
    put = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    return jax.jit(run), params, jax.device_put(state, put)


class Reference:
    """DP-KFAC as a loop over layers and devices in NumPy, float64."""

    def __init__(self, params, width, method):
        self.width, self.method = width, method
        self.weights = [
            np.concatenate([layer["kernel"], np.asarray(layer["bias"])[None]]).astype(
                np.float64
            )
            for layer in params.values()
        ]
        self.a = [np.eye(len(w)) for w in self.weights]
        self.g = [np.eye(w.shape[1]) for w in self.weights]

    def rows(self, x, y):
        """For each layer its inputs, and the gradients of its outputs."""
        h, kept = x, []
        for w in self.weights:
            a = np.concatenate([h, np.ones((len(h), 1))], 1)
            t = np.tanh(a @ w)
            kept.append((a, t))
            h = h + t
        g, found = (h - y) / len(h), []
        for (a, t), w in zip(reversed(kept), reversed(self.weights), strict=True):
            z = g * (1 - t**2)
            found.append((a, z))
            g = g + z @ w[:-1].T
        return found[::-1]

    def step(self, batch):
        locals_ = np.split(np.asarray(batch, np.float64), self.width, 1)
        found = [self.rows(*one) for one in locals_]
        share = -(-len(self.weights) // self.width)
        old, damping = SETTINGS["ema_old"], SETTINGS["damping"]
        grads, steps = [], []
        for layer in range(len(self.weights)):
            grad = np.mean([a.T @ z for a, z in (one[layer] for one in found)], 0)
            a, z = found[layer // share][layer]
            self.a[layer] = old * self.a[layer] + (1 - old) * a.T @ a / len(a)
            self.g[layer] = old * self.g[layer] + (1 - old) * z.T @ z * len(z)
            grads.append(grad)
            steps.append(self.precondition(layer, grad, damping))
        size = sum((s * g).sum() for s, g in zip(steps, grads, strict=True))
        size = abs(size) * SETTINGS["learning_rate"] ** 2
        nu = min(1, (SETTINGS["kl_clip"] / size) ** 0.5)
        for w, s in zip(self.weights, steps, strict=True):
            w -= 0.3 * nu * s
        return nu

    def precondition(self, layer, grad, damping):
        a, g = self.a[layer], self.g[layer]
        if self.method == "eigen":
            (da, qa), (dg, qg) = np.linalg.eigh(a), np.linalg.eigh(g)
            inner = qa.T @ grad @ qg / (np.outer(da, dg) + damping)
            return qa @ inner @ qg.T
        pi = ((np.trace(a) / len(a)) / (np.trace(g) / len(g))) ** 0.5
        a = a + pi * damping**0.5 * np.eye(len(a))
        g = g + damping**0.5 / pi * np.eye(len(g))
        return np.linalg.inv(a) @ grad @ np.linalg.inv(g)


@pytest.mark.parametrize(
    ("width", "method"),
    [
        (4, "cholesky"),
        (4, "eigen"),
        *(
            pytest.param(width, method, marks=pytest.mark.slow)
            for width in (1, 2, 8)
            for method in ("cholesky", "eigen")
        ),
    ],
)
def test_f1_as_a_loop_over_owners(width, method):
    """Six layers, so that four and eight devices have paddings."""
    run, params, state = on_mesh(width, {}, method)
    want, clipped = Reference(params, width, method), []
    for number in range(3):
        batch = data(width * LOCAL, seed=number)
        params, state = run(params, state, batch)
        clipped.append(want.step(batch))
        for layer, w in zip(params.values(), want.weights, strict=True):
            made = np.concatenate([layer["kernel"], np.asarray(layer["bias"])[None]])
            np.testing.assert_allclose(made, w, rtol=0, atol=1e-6)
    assert max(clipped) < 1  # the bound was at work
    assert not any(int(n) for n in (state.skipped, state.failed, state.plain))


def alone(options=None, params=None):
    """The same step on one device, without a mesh."""
    tx = dp_kfac(optax.sgd(0.3), **SETTINGS | (options or {}))
    params = start() if params is None else params

    @jax.jit
    def run(params, state, batch):
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return run, params, tx.init(params)


def distance(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return float(sum(jnp.square(a - b).sum() for a, b in pairs) ** 0.5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_f2_where_all_have_the_same_examples_it_is_k_fac(check_vma):
    run, params, state = on_mesh(4, {}, check_vma=check_vma)
    single, same, own = alone()
    for number in range(3):
        batch = data(LOCAL, seed=number)
        params, state = run(params, state, jnp.tile(batch, (1, 4, 1)))
        same, own = single(same, own, batch)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_f3_the_gap_to_k_fac_of_the_whole_batch_falls_with_the_local_one():
    gaps = []
    for local in (8, 64, 512):
        found = []
        for make in (functools.partial(on_mesh, 4), alone):
            run, params, state = make({"ema_old": 0.0, "kl_clip": None})
            new, _ = run(params, state, data(4 * local))
            moved = jax.tree.map(lambda a, b: np.asarray(a) - b, new, params)
            found.append(moved)
        still = jax.tree.map(np.zeros_like, found[1])
        gaps.append(distance(*found) / distance(found[1], still))
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[0] > 0.02


def compiled(run, params, state, batch):
    found = count_collectives(run.lower(params, state, batch).compile())
    return [one for one in found if one.sent_bytes]


def test_f4_one_reduce_scatter_and_one_all_gather_a_stack_send_what_sgd_sends():
    params = start(layers=8, bias=False)
    other = start(layers=4, bias=False, seed=1)
    wide = {
        n.replace("layer", "more"): {"kernel": v["kernel"]} for n, v in other.items()
    }
    for layer in wide.values():
        layer["bias"] = jnp.zeros(WIDTH)
    params = {**params, **with_taps(wide)}
    run, params, state = on_mesh(4, {}, params=params)
    found = compiled(run, params, state, data(16))
    assert [one.op for one in found].count("reduce-scatter") == 2
    assert [one.op for one in found].count("all-gather") == 2
    shapes = sorted(one.shape for one in found)
    kernels = [("f32[8,5,5]",), ("f32[4,6,5]",)]  # gathered; each device adds a part
    parts = [("f32[2,5,5]",), ("f32[1,6,5]",)]
    assert shapes == sorted([*kernels, *parts, ("f32[4]",)])

    def sgd(params, batch):
        here = jax.tree.map(lambda p: jax.lax.pcast(p, ("data",), to="varying"), params)
        return jax.lax.pmean(jax.grad(loss)(here, batch), "data")

    bare = {n: {k: v for k, v in p.items() if k != TAPS} for n, p in params.items()}
    mesh = make_cloud_mesh("data=4", devices=jax.devices()[:4])
    whole = jax.shard_map(
        sgd, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P()
    )
    plain = count_collectives(jax.jit(whole).lower(bare, data(16)).compile())
    assert {one.op for one in plain} == {"all-reduce"}
    sizes = sum(leaf.size for leaf in jax.tree.leaves(bare))
    mine = sum(one.sent_bytes for one in found if one.op != "all-reduce")
    assert mine == sum(one.sent_bytes for one in plain) == 2 * 3 / 4 * sizes * 4
    [counts] = [one for one in found if one.op == "all-reduce"]
    assert counts.bytes == 16  # of the clip and three counts


@pytest.mark.parametrize("width", [1, 4, 8])
def test_f5_factors_take_a_share_of_the_memory(width):
    run, params, state = on_mesh(width, {})
    new, state = run(params, state, data(width))  # of one example on each device
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    [known] = state.curvature.values()
    held = {}
    for leaf in (known.a, known.g, *known.inverse):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    each = ((WIDTH + 1) ** 2 + WIDTH**2) * 4 * 2
    share = -(-LAYERS // width)
    assert set(held.values()) == {share * each} and len(held) == width
    # The report of memory counts them as they lie, and a bool of each layer.
    assert device_bytes(state.curvature) == share * (each + 1)


def test_f6_inverses_stay_between_and_so_do_factors():
    run, params, state = alone({"inverse_every": 4, "factor_every": 2})
    seen = []
    for number in range(9):
        params, state = run(params, state, data(LOCAL, seed=number))
        [known] = state.curvature.values()
        seen.append(jax.tree.map(np.asarray, (known.inverse, (known.a, known.g))))

    def moves(part):
        return [
            any((a != b).any() for a, b in zip(old[part], new[part], strict=True))
            for old, new in zip(seen, seen[1:], strict=False)
        ]

    assert moves(0) == [n % 4 == 0 for n in range(1, 9)]
    assert moves(1) == [n % 2 == 0 for n in range(1, 9)]


def test_f9_saved_and_restored_in_the_midst_it_is_the_same_to_the_bit(tmp_path):
    run, params, state = on_mesh(2, {"factor_every": 2, "inverse_every": 4})
    for number in range(3):
        params, state = run(params, state, data(8, seed=number))
    store = Checkpoints(tmp_path, {})
    store.save(3, (params, state), {})
    (params2, state2), _ = store.restore((params, state))
    for number in range(3, 6):
        params, state = run(params, state, data(8, seed=number))
        params2, state2 = run(params2, state2, data(8, seed=number))
    for a, b in zip(
        jax.tree.leaves((params, state)),
        jax.tree.leaves((params2, state2)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_state_goes_to_a_mesh_of_another_size():
    """Where all devices have the same examples, both go on alike."""
    run, params, state = on_mesh(2, {})
    batch = data(LOCAL)
    params, state = run(params, state, jnp.tile(batch, (1, 2, 1)))
    again, _, like = on_mesh(4, {})
    kept = jax.device_get(state)
    moved = reshard(kept, params, 4)
    [wide] = moved.curvature.values()
    assert (np.asarray(wide.a)[LAYERS:] == np.eye(WIDTH + 1)).all()
    assert len(wide.a) == 8
    for a, b in zip(
        jax.tree.leaves(reshard(moved, params, 2)), jax.tree.leaves(kept), strict=True
    ):
        np.testing.assert_array_equal(a, b)  # and back again
    moved = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), moved, like)
    one, _ = run(params, state, jnp.tile(batch, (1, 2, 1)))
    other, _ = again(jax.device_get(params), moved, jnp.tile(batch, (1, 4, 1)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_leaves_that_are_no_layers_are_averaged():
    params = start(layers=1)
    params["layer_1"] = {"bias": jnp.ones(WIDTH), "kernel": jnp.ones((WIDTH, WIDTH))}
    run, params, state = on_mesh(2, {"kl_clip": None}, params=params)
    batch = data(8)
    new, _ = run(params, state, batch)
    grads = jax.grad(loss)(params, batch)
    for name in ("kernel", "bias"):
        want = params["layer_1"][name] - 0.3 * grads["layer_1"][name]
        np.testing.assert_allclose(new["layer_1"][name], want, atol=1e-6)


def test_only_owners_compute_factors():
    """At `on_owner`, the taps of others' layers are silent."""
    mesh = make_cloud_mesh("data=2", devices=jax.devices()[:2])

    def found(params, batch):
        grads = jax.grad(loss)(on_owner(params, "data", 2), batch)
        return jnp.stack([layer[TAPS].tap_a[-1, -1] for layer in grads.values()])

    run = jax.shard_map(
        found, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P("data")
    )
    counts = jax.jit(run)(start(), data(8)).reshape(2, LAYERS)
    assert counts.tolist() == [[4.0] * 3 + [0.0] * 3, [0.0] * 3 + [4.0] * 3]


def test_g_what_one_device_has_that_is_no_number_spoils_its_own_layers_alone():
    """Of six layers three have their factors from device 0, three from device 1."""
    run, params, state = on_mesh(2, {})
    params, state = run(params, state, data(8))
    _, new = run(params, state, data(8, seed=2).at[0, 0, 0].set(jnp.nan))
    assert [int(n) for n in (new.skipped, new.failed, new.plain)] == [3, 0, 0]
    [old], [now] = state.curvature.values(), new.curvature.values()
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(now), strict=True):
        np.testing.assert_array_equal(a[:3], b[:3])
        assert np.isfinite(b).all()
    pairs = zip((old.a, old.g, *old.inverse), (now.a, now.g, *now.inverse), strict=True)
    for a, b in pairs:
        assert np.asarray(a != b)[3:].reshape(3, -1).any(1).all()


def test_g_a_mesh_of_another_size_is_refused():
    mesh = make_cloud_mesh("data=2", devices=jax.devices()[:2])
    params, tx = (
        start(),
        dp_kfac(optax.sgd(1), axis_name="data", shards=4, kl_clip=None),
    )

    def step(params):
        return tx.update(params, tx.init(params), params)[0]

    run = jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P())
    with pytest.raises(ValueError, match="shards=4, and the axis 'data' has 2"):
        jax.eval_shape(run, params)


def ill_conditioned(tx):
    """Steps to a loss of 1e-3 of a regression whose inputs differ by 100 in scale.

    1000 where they do not lead there.
    """
    steps, rng = 1000, np.random.default_rng(3)
    scales = np.logspace(0, -2, 8)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    x = jnp.asarray(rng.normal(size=(128, 8)) * scales @ turn, jnp.float32)
    true = rng.normal(size=(8, 4)) / scales[:, None]
    y = x @ jnp.asarray(turn.T @ true, jnp.float32)
    params = with_taps({"kernel": jnp.zeros((8, 4))})

    def error(params):
        out = watch(lambda x: x @ params["kernel"], x, params.get(TAPS))
        return jnp.square(out - y).sum(-1).mean() / 2

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(error)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]

    reached = np.asarray(jax.jit(run)(params)) < 1e-3
    return int(reached.argmax()) if reached.any() else steps


def test_f8_an_ill_conditioned_regression_takes_fewer_steps_than_tuned_sgd():
    """SGD at the best of three rates, half an order apart, and two momenta."""
    grid = [(rate, m) for rate in (0.3, 1.0, 3.0) for m in (0.9, 0.99)]
    best = min(ill_conditioned(optax.sgd(rate, m)) for rate, m in grid)
    rate = optax.exponential_decay(2.0, 1, 0.9)
    options = {"damping": 1e-8, "ema_old": 0.3, "kl_clip": None}
    kfac = ill_conditioned(dp_kfac(optax.sgd(rate), **options))
    assert kfac < 100 < best / 4


@pytest.mark.slow
def test_f7_two_processes_have_the_same_numbers():
    done = job("tests.systems.dp_kfac_process", ["2"] * 2)
    ends = [one.stderr[-2000:] for one in done]
    assert [one.returncode for one in done] == [0, 0], "\n".join(ends)
    run, params, state = on_mesh(4, {})
    for number in range(2):
        params, state = run(params, state, data(16, seed=number))
    want = {name: a for name, a in flat(params).items() if "tap" not in name}
    for one in done:
        made = json.loads(one.stdout.splitlines()[-1])  # Gloo writes there, too
        assert set(made) == set(want)
        for name, leaf in want.items():
            np.testing.assert_allclose(made[name], np.ravel(leaf), rtol=0, atol=1e-6)


def test_the_chain_uses_each_tap_once():
    check_taps(loss, start(), data(LOCAL))
