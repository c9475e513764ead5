"""Statistics of layers against NumPy, inverses, and taps that are used wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.adapters.linen import from_linen
from splitjax.core.stage import join, repeat
from splitjax.core.tree import flat
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.cnn import cnn
from splitjax.models.convolution import Conv
from splitjax.models.dense import Dense
from splitjax.models.resnet import ResNetConfig, resnet
from splitjax.optim import check_taps, with_taps
from splitjax.optim.curvature import TAPS, Taps, kernel_shape
from splitjax.optim.kronecker import (
    averaged,
    identity,
    inverted,
    preconditioned,
    shifts,
)
from splitjax.optim.stack import (
    gathered,
    gathered_taps,
    given_back,
    stacks,
)

KEY = jax.random.key(0)


def found(layer, params, x, weights):
    """Taps' cotangents of a layer, for a loss whose output gradient is `weights`."""

    def loss(params):
        return (layer.apply({"params": params}, x) * weights).sum()

    return jax.jit(jax.grad(loss))(params)


def ones(rows):
    return np.concatenate([rows, np.ones((len(rows), 1))], 1)


@pytest.mark.parametrize("reduce", ["mean", "expand"])
def test_a_dense_layer_with_tokens(reduce):
    layer, x = Dense(3), jax.random.normal(KEY, (4, 5, 2))
    plain = layer.init(KEY, x)["params"]
    params, weights = with_taps(plain, reduce=reduce), jax.random.normal(KEY, (4, 5, 3))
    made = found(layer, params, x, weights)
    a, g = np.asarray(x), np.asarray(weights)
    if reduce == "mean":
        a, g, share = ones(a.mean(1)), g.sum(1), 1
    else:
        a, g, share = ones(a.reshape(-1, 2)), g.reshape(-1, 3), 5
    np.testing.assert_allclose(made[TAPS].tap_a, a.T @ a / share, rtol=1e-5)
    np.testing.assert_allclose(made[TAPS].tap_g, g.T @ g, rtol=1e-5)
    assert float(made[TAPS].tap_a[-1, -1]) == pytest.approx(4)  # the examples
    bare = found(layer, plain, x, weights)
    np.testing.assert_array_equal(bare["kernel"], made["kernel"])


@pytest.mark.parametrize(
    ("stride", "padding"), [((1, 1), "SAME"), ((2, 1), ((1, 0), (0, 2)))]
)
def test_a_convolution_collects_its_windows(stride, padding):
    """The gradient of its kernel is the product of both sides, row by row."""
    layer = Conv(3, (3, 2), stride, padding)
    x = jax.random.normal(KEY, (2, 6, 5, 4))
    params = with_taps(layer.init(KEY, x)["params"])
    y = layer.apply({"params": params}, x)
    g = jax.random.normal(jax.random.key(1), y.shape)
    made = found(layer, params, x, g)
    rows = np.asarray(layer.bind({"params": params})._patches(x))
    places = rows.shape[1] * rows.shape[2]
    a, z = ones(rows.reshape(-1, 24)), np.asarray(g).reshape(-1, 3)
    np.testing.assert_allclose(made[TAPS].tap_a, a.T @ a / places, rtol=1e-4)
    np.testing.assert_allclose(made[TAPS].tap_g, z.T @ z, rtol=1e-4)
    [one] = stacks(params)
    whole = gathered(one, flat(made))[0]
    np.testing.assert_allclose(whole, a.T @ z, rtol=1e-4, atol=1e-4)
    back = given_back(one, whole[None], flat(made))
    np.testing.assert_array_equal(back["kernel"], made["kernel"])
    np.testing.assert_array_equal(back["bias"], made["bias"])


def test_a_mark_makes_a_tap_silent():
    layer, x = Dense(3), jnp.ones((4, 2))
    params = with_taps(layer.init(KEY, x)["params"])
    quiet = {**params}
    quiet[TAPS] = Taps(params[TAPS].tap_a.at[-1, -1].set(1.0), params[TAPS].tap_g)
    made = found(layer, quiet, x, jnp.ones((4, 3)))
    assert not made[TAPS].tap_a.any() and made[TAPS].tap_g.any()
    assert made["kernel"].any()


def test_half_precision_is_summed_in_float32():
    layer, x = Dense(1, dtype=jnp.float16), jnp.full((2, 1), 300.0)
    params = with_taps(layer.init(KEY, x)["params"])
    made = found(layer, params, x, jnp.ones((2, 1), jnp.float16))
    assert float(made[TAPS].tap_a[0, 0]) == 2 * 300.0**2  # no float16


@pytest.fixture(scope="module")
def models():
    """A model of each kind that K-FAC is for, the specs of its parameters, an input."""
    sizes = dict(vocab=17, width=8, heads=2, layers=1, ffn=16, positions=8)
    text = {"ids": jnp.ones((2, 4), jnp.int32), "mask": jnp.ones((2, 4), jnp.bool_)}
    pictures = jax.random.normal(KEY, (2, 8, 8, 1))
    small = ResNetConfig((1, 1), width=4)
    made = {
        "bert": (join(bert(BertConfig(**sizes))), text),
        "cnn": (join(cnn(3, widths=(2, 2), hidden=4)), pictures),
        "resnet": (join(resnet(small, 3)), pictures),
    }
    return {name: (model, *model.init(KEY, x), x) for name, (model, x) in made.items()}


def loss_of(model, state, x):
    def loss(params):
        y, _, _ = model.apply(params, state, x, key=None, train=False)
        leaves = jax.tree.leaves(y)
        return sum(a.sum() for a in leaves if a.dtype == jnp.float32)

    return loss


@pytest.mark.parametrize("name", ["bert", "cnn", "resnet"])
def test_every_layer_of_our_models_runs_once(name, models):
    model, params, state, x = models[name]
    made = jax.eval_shape(with_taps, params)
    kernels = [path for path in flat(params) if path.endswith("kernel")]
    assert sum(len(one.layers) for one in stacks(made)) == len(kernels) > 2
    check_taps(loss_of(model, state, x), made)


def test_g_a_layer_that_never_runs_is_named(models):
    model, params, state, x = models["cnn"]
    params = with_taps({**params, "spare": {"layer": {"kernel": jnp.ones((2, 2))}}})
    with pytest.raises(ValueError, match="taps of spare/layer: the layer never runs"):
        check_taps(loss_of(model, state, x), params)


def test_g_a_layer_used_twice_is_named():
    layer, x = Dense(2), jnp.ones((3, 2))
    params = {"shared": with_taps(layer.init(KEY, x)["params"])}

    def loss(params):
        run = jax.checkpoint(lambda x: layer.apply({"params": params["shared"]}, x))
        return run(run(x)).sum()

    with pytest.raises(ValueError, match="taps of shared: the layer runs more than"):
        check_taps(loss, params)

    def scanned(params):
        def turn(x, _):
            return layer.apply({"params": params["shared"]}, x), ()

        return jax.lax.scan(turn, x, length=2)[0].sum()

    with pytest.raises(ValueError, match="taps of shared"):
        check_taps(scanned, params)
    once = jax.jit(lambda params: layer.apply({"params": params["shared"]}, x).sum())
    check_taps(once, params)


def test_a_stack_that_a_scan_runs_has_factors_for_each_row():
    stack = repeat(from_linen(Dense(3), "block"), 4)
    x = jax.random.normal(KEY, (5, 3))
    params, state = stack.init(KEY, x)
    made = with_taps(params)
    assert made[TAPS].tap_a.shape == (4, 4, 4)
    loss = loss_of(stack, state, x)
    check_taps(loss, made)
    grads = jax.jit(jax.grad(loss))(made)
    [one] = stacks(made, shards=3)
    assert (one.rows, one.length, one.padding) == ((4,), 6, 2)
    a, _, count = gathered_taps(one, flat(grads))
    assert count.tolist() == [5.0] * 4 + [0.0] * 2
    first = ones(np.asarray(x))
    np.testing.assert_allclose(a[0], first.T @ first, rtol=1e-5)
    back = given_back(one, gathered(one, flat(grads)), flat(grads))
    np.testing.assert_array_equal(back["kernel"], grads["kernel"])


def test_stacks_and_what_of_them_is_padding():
    layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    bare = {"kernel": jnp.ones((4, 2))}  # the same matrix, without a bias
    parts = stacks(
        with_taps({"a": layer, "b": bare, "c": {"kernel": jnp.ones((5, 5))}})
    )
    assert [(one.name, one.layers) for one in parts] == [
        ("4x2", ("a/", "b/")),
        ("5x5", ("c/",)),
    ]
    assert [one.padding for one in parts] == [0, 0]
    [wide] = stacks(with_taps({"a": layer, "b": bare, "c": layer}), shards=4)
    assert (wide.length, wide.padding) == (4, 1)


def test_g_what_cannot_be_tapped():
    params = {"a": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(2)}}
    with pytest.raises(
        ValueError, match=r"'b/.*', largest=4096.*\n  a/kernel \(2, 3\)"
    ):
        with_taps(params, "b/.*")
    with pytest.raises(ValueError, match="largest=2"):
        with_taps(params, largest=2)
    with pytest.raises(ValueError, match="reduce='sum'"):
        with_taps(params, reduce="sum")
    with pytest.raises(ValueError, match="one leading axis at most"):
        kernel_shape((1, 2, 3, 4, 5, 6))
    with pytest.raises(ValueError, match="no layer of params has K-FAC's taps"):
        stacks(params)
    with pytest.raises(ValueError, match="shards=0"):
        stacks(with_taps(params), 0)
    layer, x = Conv(4, (1, 1), feature_group_count=2), jnp.ones((1, 2, 2, 2))
    grouped = with_taps(layer.init(KEY, x)["params"])
    with pytest.raises(ValueError, match="of 2 groups"):
        layer.apply({"params": grouped}, x)
    flat_input = Dense(2)
    one = with_taps(flat_input.init(KEY, jnp.ones(2))["params"])
    with pytest.raises(ValueError, match="has no examples"):
        flat_input.apply({"params": one}, jnp.ones(2))


# Factors and inverses.


def spd(size, seed, scale=1.0):
    x = np.random.default_rng(seed).normal(size=(3 * size, size))
    return jnp.asarray(scale * x.T @ x / len(x), jnp.float32)[None]


def known(a, g, method="cholesky"):
    start = identity(1, a.shape[-1], g.shape[-1], method)
    return start._replace(a=a, g=g)


@pytest.mark.parametrize("method", ["cholesky", "eigen"])
def test_inverses_are_those_of_the_damped_product(method):
    a, g, damping = spd(5, 0, 3.0), spd(3, 1, 0.1), 0.03
    made, failed = inverted(known(a, g, method), damping, method)
    grad = jnp.asarray(np.random.default_rng(2).normal(size=(1, 5, 3)), jnp.float32)
    step = preconditioned(made, grad, damping)[0]
    if method == "cholesky":
        pi = np.sqrt((np.trace(a[0]) / 5) / (np.trace(g[0]) / 3))
        left = np.asarray(a[0]) + pi * damping**0.5 * np.eye(5)
        right = np.asarray(g[0]) + damping**0.5 / pi * np.eye(3)
        back = left @ np.asarray(step) @ right
    else:
        back = np.asarray(a[0]) @ np.asarray(step) @ np.asarray(g[0])
        back = back + damping * np.asarray(step)
    np.testing.assert_allclose(back, grad[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(made.a, a)  # no damping in the averages
    assert not failed.any() and not made.plain.any()


def test_what_each_method_gives_where_factors_are_multiples_of_the_identity():
    a, g = 4 * jnp.eye(3)[None], jnp.eye(2)[None]
    grad = jnp.ones((1, 3, 2))
    for method, want in [("eigen", 1 / (4 + 0.25)), ("cholesky", 1 / (5 * 1.25))]:
        made, _ = inverted(known(a, g, method), 0.25, method)
        np.testing.assert_allclose(
            preconditioned(made, grad, 0.25), want * grad, rtol=1e-5
        )


def test_scales_of_the_two_factors_do_not_matter_only_their_product():
    a, g, grad = spd(4, 0), spd(3, 1), jnp.ones((1, 4, 3))
    steps = [
        preconditioned(inverted(known(c * a, g / c), 0.01, "cholesky")[0], grad, 0.01)
        for c in (1.0, 100.0)
    ]
    np.testing.assert_allclose(*steps, rtol=1e-4)


@pytest.mark.parametrize("method", ["cholesky", "eigen"])
@pytest.mark.parametrize("dead", ["a", "g", "both"])
def test_g_a_dead_layer_has_finite_steps(method, dead):
    a = 0 * spd(4, 0) if dead != "g" else spd(4, 0)
    g = 0 * spd(3, 1) if dead != "a" else spd(3, 1)
    made, _ = inverted(known(a, g, method), 1e-3, method)
    step = preconditioned(made, jnp.ones((1, 4, 3)), 1e-3)
    assert jnp.isfinite(step).all() and not made.plain.any()
    assert jnp.isfinite(jnp.stack(shifts(a, g, 1e-3))).all()


def test_g_where_cholesky_fails_eigenvectors_serve():
    """Of two layers only the one with a factor that rounding has made indefinite."""
    bad = jnp.array([[1.0, 1.01], [1.01, 1.0]])[None]
    a, g = jnp.concatenate([spd(2, 0), bad]), jnp.concatenate([spd(2, 1)] * 2)
    start = identity(2, 2, 2, "cholesky")._replace(a=a, g=g)
    made, failed = inverted(start, 1e-8, "cholesky")
    assert failed.tolist() == [False, True] and not made.plain.any()
    alone, _ = inverted(known(a[:1], g[:1]), 1e-8, "cholesky")
    np.testing.assert_allclose(made.inverse[0][0], alone.inverse[0][0], rtol=1e-5)
    assert jnp.isfinite(made.inverse[0][1]).all()
    assert (jnp.linalg.eigvalsh(made.inverse[0][1]) > 0).all()


@pytest.mark.parametrize("method", ["cholesky", "eigen"])
def test_g_where_all_fails_the_gradient_is_plain(method):
    a = jnp.full((1, 2, 2), jnp.inf)
    made, failed = inverted(known(a, spd(3, 1), method), 1e-3, method)
    assert made.plain.all() and failed.all() == (method == "cholesky")
    grad = jnp.ones((1, 2, 3))
    np.testing.assert_array_equal(preconditioned(made, grad, 1e-3), grad)


def test_averages_leave_out_what_is_not_finite_and_what_was_not_collected():
    start = identity(3, 2, 1, "cholesky")
    a = jnp.stack([4 * jnp.eye(2), jnp.full((2, 2), jnp.nan), 4 * jnp.eye(2)])
    g = jnp.full((3, 1, 1), 2.0)
    new, skipped = averaged(start, a, g, jnp.array([2.0, 2.0, 0.0]), 0.75)
    assert skipped.tolist() == [False, True, False]
    np.testing.assert_allclose(new.a[0], (0.75 + 0.25 * 2) * np.eye(2))
    np.testing.assert_allclose(new.g[0], [[0.75 + 0.25 * 4]])
    for row in (1, 2):
        np.testing.assert_array_equal(new.a[row], start.a[row])
        np.testing.assert_array_equal(new.g[row], start.g[row])
