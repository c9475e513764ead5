"""What all kernels share: ways to run, tiles, and devices that are not here."""

import jax
import jax.numpy as jnp
import pytest

from splitjax.kernels import (
    bias_act_dropout,
    bias_dropout_skip,
    dropout,
    kernel,
    layer_norm,
)
from splitjax.kernels import cross_entropy as criterion
from splitjax.kernels.cross_entropy import _GRADIENT, _STATISTICS
from splitjax.kernels.launch import block
from splitjax.kernels.layer_norm import _BACKWARD, _FORWARD
from splitjax.kernels.tile import erf
from tests.kernels.ways import assert_close, lowered, normal, value_and_pull

F32 = jnp.float32
WORDS = (jnp.uint32(5), jnp.uint32(6))


def _cases(shape):
    """By name: a kernel, its arrays, what it makes, and its static arguments."""
    x, dy = normal(shape), normal(shape, 1)
    scale, bias = normal(shape[-1:], 2), normal(shape[-1:], 3)
    mean, rstd = normal((*shape[:-1], 1), 4), jnp.abs(normal((*shape[:-1], 1), 5))
    labels = jnp.arange(mean.size, dtype=jnp.int32).reshape(mean.shape) % shape[-1]
    half, act = {"rate": 0.5}, {"rate": 0.5, "activation": "gelu"}
    return {
        "norm": (_FORWARD, (x, scale, bias), 3, {"eps": 1e-6}),
        "norm_back": (_BACKWARD, (dy, x, scale, mean, rstd), 3, {}),
        "skip": (dropout._SKIP, (x, bias, dy, *WORDS), 1, half),
        "skip_back": (dropout._SKIP_BACK, (dy, *WORDS), 2, half),
        "act": (dropout._ACT, (x, bias, *WORDS), 1, act),
        "act_back": (dropout._ACT_BACK, (dy, x, bias, *WORDS), 2, act),
        "gradient": (_GRADIENT, (x, labels, mean + 3, rstd), 1, {"e": 0.1, "w": 0.7}),
    }


@pytest.mark.parametrize("target", ["triton", "mosaic"])
@pytest.mark.parametrize("name", [*_cases((7, 33))])
def test_programs_equal_their_twin(name, target):
    """Also where tiles hang over the edge; for one kernel of a sort, where a grid has
    many rows of tiles, and a row is parted."""
    more = [(300, 2, 7), (1, 5000)] if name in ("norm_back", "act_back") else []
    for shape in [(7, 33), *more]:
        kernel, arrays, made, static = _cases(shape)[name]
        dtypes = (F32,) * made
        want = jax.jit(kernel.program("xla", arrays, dtypes, **static))(*arrays)
        run = kernel.program(target, arrays, dtypes, interpret=True, **static)
        assert_close(jax.jit(run)(*arrays), want)


@pytest.mark.parametrize("target", ["triton", "mosaic"])
def test_parts_of_a_row_join(target):
    """Three parts of a row have a maximum each; one of them has -inf alone."""
    x = normal((4, 6000)).at[:, :2048].set(-jnp.inf)
    labels = jnp.full((4, 1), 5999, jnp.int32)
    dtypes = (F32,) * 4
    run = _STATISTICS.program(target, (x, labels), dtypes, interpret=True)
    top, exps, _, right = jax.jit(run)(x, labels)
    assert top.shape == (4, 3)
    assert_close(right.sum(-1), x[:, -1])
    whole = jnp.log((exps * jnp.exp(top - 9)).sum(-1)) + 9
    assert_close(whole, jax.nn.logsumexp(x, -1))


def _all(impl):
    key = jax.random.key(0)

    def run(x, scale, bias):
        y = layer_norm(x, scale, bias, impl=impl)
        y = bias_act_dropout(y, bias, key, rate=0.1, impl=impl)
        y = bias_dropout_skip(y, bias, x, key, rate=0.1, impl=impl)
        labels = jnp.zeros(x.shape[:-1], jnp.int32)
        return criterion(y, labels, smoothing=0.1, impl=impl).sum()

    return jax.value_and_grad(run, argnums=(0, 1, 2))


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_they_lower_for_devices_that_are_not_here(platform, dtype):
    """One program forward and one backward for each of four kernels."""
    args = (normal((6, 33), dtype=dtype), normal((33,), 1), normal((33,), 2))
    text = lowered(_all("pallas"), *args, platform=platform)
    assert text.count("custom_call @") == 8
    mark = "tpu_custom_call" if platform == "tpu" else "triton"
    assert text.count(mark) >= 8
    text = lowered(_all("xla"), *args, platform=platform)
    assert "custom_call @" not in text


def test_auto_is_xla_on_a_cpu():
    args = (normal((6, 33)), normal((33,), 1), normal((33,), 2))
    auto, xla = (jax.make_jaxpr(_all(impl))(*args) for impl in ("auto", "xla"))
    assert "pallas_call" not in str(auto)
    assert str(auto).replace("auto", "xla") == str(xla)
    assert "pallas_call" in str(jax.make_jaxpr(_all("pallas"))(*args))


@pytest.mark.parametrize("impl", kernel.IMPLS)
def test_under_vmap(impl):
    x, scale, bias = normal((2, 3, 9)), normal((9,), 1), normal((9,), 2)

    def norm(x):
        return layer_norm(x, scale, bias, impl=impl)

    got = value_and_pull(jax.vmap(norm), x)
    assert_close(got, value_and_pull(norm, x))


@pytest.mark.parametrize("impl", kernel.IMPLS)
def test_no_rows_and_rows_too_wide(impl):
    """What no tile can hold falls back; nothing is thrown."""
    for shape in [(0, 8), (3, 0), (2, 70_000)]:
        x, w = jnp.ones(shape), jnp.ones(shape[-1])
        y, grads = value_and_pull(lambda *a, i=impl: layer_norm(*a, impl=i), x, w, w)
        assert y.shape == shape and jnp.isfinite(y).all()
        assert all(jnp.isfinite(g).all() for g in grads)


def test_tiles_fit_their_device():
    assert block("triton", 10, 384, parted=False) == (4, 512)
    assert block("mosaic", 10_000, 384, parted=False) == (320, 384)
    assert block("triton", 10, 50_257, parted=True) == (1, 2048)
    assert block("mosaic", 10, 50_257, parted=True) == (10, 2048)
    assert block("triton", 1, 2**17, parted=False) is None
    assert block("mosaic", 1, 2**17, parted=False) is None


def test_error_function():
    x = jnp.linspace(-6, 6, 4001)
    # The formula's own 1.5e-7, and some roundings of 6e-8.
    assert float(jnp.abs(erf(x) - jax.lax.erf(x)).max()) < 6e-7
    slope = jax.jit(jax.vmap(jax.grad(erf)))(x)
    assert float(jnp.abs(slope - jax.vmap(jax.grad(jax.lax.erf))(x)).max()) < 1e-5


def test_unknown_way():
    with pytest.raises(ValueError, match="impl='pallsa'.*pallas"):
        layer_norm(jnp.ones((1, 2)), jnp.ones(2), jnp.ones(2), impl="pallsa")
