"""The nearest signed power of two, exactly: without a logarithm."""

import jax
import jax.numpy as jnp

from splitjax.core.precision import widened


def nearest(x: jax.Array, *, min_exp: int, max_exp: int) -> jax.Array:
    """The nearest of 0 and `+-2^k`, k from min_exp to max_exp, in linear distance.

    With `|x| = m 2^e` and m from 1/2 to 1, the power below is `2^(e-1)` and is the
    nearest iff `m <= 3/4`: a tie goes to the lower. What is below all halves goes to 0,
    what is above all powers to `2^max_exp`. A NaN stays.

    Args:
      x: floating, any shape.
      min_exp: the least exponent.
      max_exp: the greatest one.

    Returns:
      Of x's shape and dtype; 0 is never `-0`.

    Raises:
      TypeError: for anything but floats.
      ValueError: for exponents out of order, or beyond what the dtype holds exactly.

    Example:
      >>> nearest(jnp.array([0.7, -0.75, 9.0, 0.2]), min_exp=-1, max_exp=2).tolist()
      [0.5, -0.5, 4.0, 0.0]
    """
    check_exponents(min_exp, max_exp, x.dtype)
    mantissa, exponent = jnp.frexp(widened(x))
    exponent = exponent - (jnp.abs(mantissa) <= 0.75).astype(exponent.dtype)
    exponent = jnp.clip(exponent, min_exp, max_exp)
    power = jnp.ldexp(jnp.sign(mantissa), exponent).astype(x.dtype)
    small = jnp.abs(x) <= jnp.array(2.0 ** (min_exp - 1), x.dtype)
    return jnp.where(jnp.isnan(x), x, jnp.where(small, jnp.array(0, x.dtype), power))


def is_power_of_two(x: jax.Array) -> jax.Array:
    """Whether each value is 0 or exactly `+-2^k`.

    Example:
      >>> is_power_of_two(jnp.array([0.0, -0.25, 0.3, jnp.nan])).tolist()
      [True, True, False, False]
    """
    mantissa, _ = jnp.frexp(widened(x))
    return (x == 0) | (jnp.abs(mantissa) == 0.5)


def check_exponents(min_exp: int, max_exp: int, dtype) -> None:
    """Raises unless the exponents are in order and exact in a dtype.

    Example:
      >>> check_exponents(3, 2, jnp.float32)
      Traceback (most recent call last):
      ...
      ValueError: exponents from 3 to 2: the least must not be above the greatest
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"powers of two are floats here, not {jnp.dtype(dtype)}")
    if min_exp > max_exp:
        raise ValueError(
            f"exponents from {min_exp} to {max_exp}: the least must not be above the "
            "greatest"
        )
    info = jnp.finfo(dtype)
    if min_exp <= info.minexp or max_exp >= info.maxexp:
        raise ValueError(
            f"exponents from {min_exp} to {max_exp}: normal numbers of "
            f"{jnp.dtype(dtype)} are within {info.minexp} and {info.maxexp}"
        )
