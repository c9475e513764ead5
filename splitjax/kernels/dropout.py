"""What stands between two dense layers, each chain in one pass and without a mask."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from splitjax.core.keys import fold
from splitjax.core.noise import hashed, words
from splitjax.core.tree import nearest
from splitjax.kernels.kernel import Kernel
from splitjax.kernels.tile import Tile

Erf = Callable[[jax.Array], jax.Array]
# Each reads the error function too, which is not the same everywhere.
ACTIVATIONS: dict[str, Callable[[jax.Array, Erf], jax.Array]] = {
    "gelu": lambda x, erf: x * (0.5 + 0.5 * erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x, erf: jax.nn.gelu(x, approximate=True),
    "relu": lambda x, erf: jnp.maximum(x, 0.0),
    "silu": lambda x, erf: jax.nn.silu(x),
}


def bias_dropout_skip(
    x: jax.Array,
    bias: jax.Array,
    skip: jax.Array,
    key: jax.Array | None = None,
    *,
    rate: float = 0.0,
    impl: str = "auto",
) -> jax.Array:
    """skip + keep * (x + bias) / (1 - rate), with keep of a Bernoulli of 1 - rate.

    What is kept is a hash of the key and of the value's place, computed anew in the
    backward pass: no mask and no activation is stored, only the two words of the key.

    Args:
      x: (..., D), of any float dtype.
      bias: (D,).
      skip: (..., D).
      key: a typed key, folded with the name of this function; None at a rate of 0.
        Two calls of one key and one shape drop the same places: fold a name into each.
      rate: of what is dropped, 0 to 1; at 1 the result is `skip`.
      impl: see `kernel.Kernel`.

    Returns:
      (..., D) in the dtype of `skip`.

    Raises:
      ValueError: when shapes or dtypes do not fit, for a rate that is no probability,
        or without a key where one is needed.

    Example:
      >>> x, bias = jnp.zeros((2, 4)), jnp.ones(4)
      >>> y = bias_dropout_skip(x, bias, x, jax.random.key(0), rate=0.5)
      >>> sorted(set(y.reshape(-1).tolist()))
      [0.0, 2.0]

    Reference:
      Wang et al., LightSeq2, 2022 (arXiv:2110.05722), on layer-wise kernels; N.
      Srivastava et al., Dropout, 2014, J. Mach. Learn. Res. 15, section 4.

    Differs:
      LightSeq stores a byte of mask for each value, drawn from a seed of the clock's.
    """
    _check("bias_dropout_skip", x, bias, key, rate)
    if skip.shape != x.shape or not jnp.issubdtype(skip.dtype, jnp.floating):
        raise ValueError(f"skip is floats {x.shape}, as x: {skip.dtype} {skip.shape}")
    first, second = key_words(key, "bias_dropout_skip", rate)
    return _skip(x, bias, skip, first, second, float(rate), impl)


def bias_act_dropout(
    x: jax.Array,
    bias: jax.Array,
    key: jax.Array | None = None,
    *,
    activation: str = "gelu",
    rate: float = 0.0,
    impl: str = "auto",
) -> jax.Array:
    """keep * f(x + bias) / (1 - rate), with keep of a Bernoulli of 1 - rate.

    The backward pass has x, bias and the two words of the key; it computes x + bias,
    f' and what is kept anew.

    Args:
      x: (..., D), of any float dtype.
      bias: (D,).
      key: see `bias_dropout_skip`.
      activation: f, a name in `ACTIVATIONS`.
      rate: see `bias_dropout_skip`; at 1 the result is zero.
      impl: see `kernel.Kernel`. Where Triton runs it, "gelu" has an error function of
        6e-7.

    Returns:
      (..., D) in the dtype of x.

    Raises:
      ValueError: as `bias_dropout_skip`, and for another activation.

    Example:
      >>> x = jnp.array([[-1.0, 1.0]])
      >>> bias_act_dropout(x, jnp.ones(2), activation="relu").tolist()
      [[0.0, 2.0]]

    Reference: see `bias_dropout_skip`.

    Differs: likewise; LightSeq has ReLU and the GELU by tanh.
    """
    _check("bias_act_dropout", x, bias, key, rate)
    if activation not in ACTIVATIONS:
        near = nearest(activation, tuple(ACTIVATIONS))
        raise ValueError(f"activation={activation!r}: {near}")
    first, second = key_words(key, "bias_act_dropout", rate)
    return _act(x, bias, first, second, activation, float(rate), impl)


def key_words(
    key: jax.Array | None, name: str, rate: float
) -> tuple[jax.Array, jax.Array]:
    """The two words that `kept` hashes, of the key folded with a kernel's name.

    Zeros where nothing is drawn.

    Example:
      >>> [int(word) for word in key_words(None, "embed", 0.0)]
      [0, 0]
    """
    if key is None or not rate:
        return jnp.uint32(0), jnp.uint32(0)
    return words(fold(key, name))


def check_rate(name: str, key: jax.Array | None, rate: float) -> None:
    """Raises a ValueError for a rate that cannot be, or lacks its key.

    Example:
      >>> check_rate("embed", None, 0.1)
      Traceback (most recent call last):
      ...
      ValueError: embed(rate=0.1) needs a key: pass key=
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"{name}(rate={rate}): a probability, from 0 to 1")
    if key is None and 0 < rate < 1:
        raise ValueError(f"{name}(rate={rate}) needs a key: pass key=")


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _skip(x, bias, skip, first, second, rate, impl):
    arrays, dtypes = (x, bias, skip, first, second), (skip.dtype,)
    return _SKIP(*arrays, dtypes=dtypes, impl=impl, rate=rate)[0]


def _skip_fwd(x, bias, skip, first, second, rate, impl):
    like = jnp.zeros(0, x.dtype), jnp.zeros(0, bias.dtype)
    return _skip(x, bias, skip, first, second, rate, impl), (like, first, second)


def _skip_bwd(rate, impl, residuals, dy):
    like, first, second = residuals
    dtypes = [leaf.dtype for leaf in like]
    made = _SKIP_BACK(dy, first, second, dtypes=dtypes, impl=impl, rate=rate)
    return *made, dy, None, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _act(x, bias, first, second, activation, rate, impl):
    static = {"impl": impl, "activation": activation, "rate": rate}
    return _ACT(x, bias, first, second, dtypes=(x.dtype,), **static)[0]


def _act_fwd(x, bias, first, second, activation, rate, impl):
    y = _act(x, bias, first, second, activation, rate, impl)
    return y, (x, bias, first, second)


def _act_bwd(activation, rate, impl, residuals, dy):
    x, bias, first, second = residuals
    static = {"impl": impl, "activation": activation, "rate": rate}
    dtypes = (x.dtype, bias.dtype)
    made = _ACT_BACK(dy, x, bias, first, second, dtypes=dtypes, **static)
    return *made, None, None


_skip.defvjp(_skip_fwd, _skip_bwd)
_act.defvjp(_act_fwd, _act_bwd)


def kept(
    tile: Tile, x: jax.Array, first: jax.Array, second: jax.Array, rate: float
) -> jax.Array:
    """x / (1 - rate) where it is kept, and zero elsewhere.

    Example:
      >>> x, word = jnp.ones((2, 3)), jnp.uint32(0)
      >>> bool((kept(Tile((2, 3)), x, word, word, 0.0) == x).all())
      True
    """
    if rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    below = jnp.uint32(min(round(rate * 2.0**32), 2**32 - 1))
    keep = hashed(tile.places(), first, second) >= below
    return jnp.where(keep, x * (1 / (1 - rate)), 0.0)


def _skip_forward(tile: Tile, x, bias, skip, first, second, *, rate):
    y = x.astype(jnp.float32) + bias.astype(jnp.float32)
    return (skip.astype(jnp.float32) + kept(tile, y, first, second, rate),)


def _skip_backward(tile: Tile, dy, first, second, *, rate):
    dx = kept(tile, dy.astype(jnp.float32), first, second, rate)
    return dx, tile.sum_rows(dx)


def _act_forward(tile: Tile, x, bias, first, second, *, activation, rate):
    y = x.astype(jnp.float32) + bias.astype(jnp.float32)
    y = ACTIVATIONS[activation](y, tile.erf)
    return (kept(tile, y, first, second, rate),)


def _act_backward(tile: Tile, dy, x, bias, first, second, *, activation, rate):
    x = x.astype(jnp.float32) + bias.astype(jnp.float32)

    def of(x):
        return ACTIVATIONS[activation](x, tile.erf)

    _, slope = jax.jvp(of, (x,), (jnp.ones_like(x),))
    dx = kept(tile, dy.astype(jnp.float32), first, second, rate) * slope
    return dx, tile.sum_rows(dx)


_KEY = ("one", "one")
_SKIP = Kernel(
    "bias_dropout_skip",
    _skip_forward,
    ("each", "column", "each", *_KEY),
    ("each",),
    parted=True,
)
_SKIP_BACK = Kernel(
    "bias_dropout_skip_backward",
    _skip_backward,
    ("each", *_KEY),
    ("each", "column"),
    parted=True,
)
_ACT = Kernel(
    "bias_act_dropout", _act_forward, ("each", "column", *_KEY), ("each",), parted=True
)
_ACT_BACK = Kernel(
    "bias_act_dropout_backward",
    _act_backward,
    ("each", "each", "column", *_KEY),
    ("each", "column"),
    parted=True,
)


def _check(name, x, bias, key, rate):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} needs floats: x is {x.dtype}")
    if x.ndim < 1 or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"{name} of x {x.shape} needs a bias of its last axis alone: {bias.shape}"
        )
    check_rate(name, key, rate)
