"""Multiplications with an addition, as papers count the cost of a network."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def macs(function: Callable, *specs) -> int:
    """Multiply-adds of the matrix products and convolutions of one call.

    Every place of a convolution counts in full, at the border too, where `flops` (XLA's
    count, two for each) leaves out what falls on padding. All else (norms, sums, pools)
    counts nothing. The body of a scan counts as often as it runs, of a conditional the
    dearest branch, of a while loop the body once.

    Args:
      function: any function that JAX can trace; nothing is computed.
      *specs: arrays or `jax.ShapeDtypeStruct` trees.

    Example:
      >>> import jax.numpy as jnp
      >>> a = jax.ShapeDtypeStruct((2, 3), jnp.float32)
      >>> macs(lambda a: a @ a.T, a)
      12
    """
    return _of(jax.make_jaxpr(function)(*specs).jaxpr)


def _of(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            out = math.prod(eqn.outvars[0].aval.shape)
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += out * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            out = math.prod(eqn.outvars[0].aval.shape)
            kernel = eqn.invars[1].aval.shape
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += out * math.prod(kernel) // features
        else:
            inner = [_of(one) for one in inside(eqn.params)]
            each = max(inner, default=0) if name == "cond" else sum(inner)
            total += each * eqn.params.get("length", 1) if name == "scan" else each
    return total


def inside(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that an operation calls.

    Args:
      params: of one equation of a jaxpr.

    Example:
      >>> [eqn] = jax.make_jaxpr(jax.jit(abs))(1.0).eqns
      >>> [[one.primitive.name for one in jaxpr.eqns] for jaxpr in inside(eqn.params)]
      [['abs']]
    """
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one
