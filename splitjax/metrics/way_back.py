"""Bytes of a backward pass, read from its traced program: nothing is compiled."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from splitjax.core.residuals import restore, strip
from splitjax.core.tree import Tree, combine, spec_of, split_floats
from splitjax.metrics.macs import inside

LOOPS = ("scan", "while")


def bytes_of(leaves: Sequence[Any]) -> int:
    """Bytes of arrays, specs or variables of a program.

    Example:
      >>> bytes_of([jnp.ones((2, 3)), jnp.int8(0)])
      25
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


class WayBack(NamedTuple):
    """Bytes of a backward pass on one device.

    Attributes:
      kept: what the forward pass leaves for it, beside the arguments, each array once.
      again: what the parts that one body computes again leave: of the body with most.
      fullest: of gradients, `kept` and `again` what is there at once, at the most.
    """

    kept: int
    again: int
    fullest: int


def way_back(
    loss: Callable[[Tree, Tree], jax.Array],
    params: Tree,
    batch: Tree,
    gradients: Sequence[int],
) -> WayBack:
    """What gradients need, and what they and all that they need take together.

    The way back begins with all that is kept, and all that parts under
    `jax.checkpoint` leave: a CPU computes those again at once. What a step of it was
    the last to need is gone behind it, and a gradient is there from its own step on. A
    loop is one step: all of its gradients are beside all that it reads, and what it
    computes again comes and goes with it.

    Args:
      loss: `(params, batch) -> scalar`.
      params: specs.
      batch: specs of a device's rows.
      gradients: bytes of each one on a device, in the order of the leaves of floats.

    Example:
      >>> w, x = (jax.ShapeDtypeStruct((n, 3), "f4") for n in (3, 4))
      >>> way_back(lambda w, x: jnp.sin(x @ w).sum(), w, x, [36])
      WayBack(kept=48, again=0, fullest=48)
    """
    kept, back, leaves = _traced(loss, (params, batch))
    jaxpr = jax.make_jaxpr(back)(kept, leaves).jaxpr
    last, made = {}, {}
    for step, eqn in enumerate(jaxpr.eqns):
        last |= {v: step for v in eqn.invars if not isinstance(v, Literal)}
        made |= dict.fromkeys(eqn.outvars, step)
    comes, goes = [0] * len(jaxpr.eqns), [0] * len(jaxpr.eqns)
    for v, leaf in zip(jaxpr.invars, kept, strict=False):
        if v in last:
            goes[last[v]] += bytes_of([leaf])
    for v, size in zip(jaxpr.outvars, gradients, strict=False):
        if not isinstance(v, Literal) and v in made:
            comes[made[v]] += size
    parts = [step for step, eqn in enumerate(jaxpr.eqns) if _is_part(eqn)]
    there = jax.make_jaxpr(loss)(params, batch).jaxpr
    again, turn = list(_parts(there)), _in_loops(there)
    if len(parts) == len(again):  # the last one there is the first one back
        for step, size in zip(parts, reversed(again), strict=True):
            goes[step] += size
    live = most = bytes_of(kept) + sum(again)
    for step, eqn in enumerate(jaxpr.eqns):
        live += comes[step]
        most = max(most, live + (turn if _has_loop(eqn) else 0))
        live -= goes[step]
    return WayBack(bytes_of(kept), max(sum(again), turn), most)


def _kept_bytes(function: Callable, specs: Any) -> int:
    return bytes_of(_traced(function, specs)[0])


def _traced(function: Callable, specs: Any) -> tuple[list, Callable, list]:
    """What a vjp keeps, each array once; and `(kept, leaves) -> gradients`, leaves."""
    leaves, treedef = jax.tree.flatten(specs)
    order: list[int] = []

    def there(leaves):
        floats, rest = split_floats(leaves)
        _, pull = jax.vjp(
            lambda f: function(*treedef.unflatten(combine(f, rest))), floats
        )
        found = strip(pull, leaves)
        names = [id(leaf) for leaf in found.leaves if leaf is not None]
        order[:] = map(list(dict.fromkeys(names)).index, names)
        return found

    found = jax.eval_shape(there, leaves)
    held = [leaf for leaf in found.leaves if leaf is not None]
    kept = [held[order.index(number)] for number in range(len(set(order)))]

    def back(kept, leaves):
        turn = iter(order)
        full = (None if leaf is None else kept[next(turn)] for leaf in found.leaves)
        whole = dataclasses.replace(found, leaves=tuple(full))
        return restore(whole, leaves)(jnp.float32(1))[0]

    return kept, back, leaves


def _is_part(eqn: Any) -> bool:
    """Whether an operation is one under `jax.checkpoint`."""
    return "prevent_cse" in eqn.params and "policy" in eqn.params


def _parts(jaxpr: Any) -> Iterator[int]:
    """Bytes of the parts that are computed again, but for those within loops."""
    for eqn in jaxpr.eqns:
        if _is_part(eqn):
            inner = eqn.params["jaxpr"]
            run = jaxpr_as_fun(ClosedJaxpr(inner, ()))
            specs = spec_of([var.aval for var in inner.invars])
            saving = jax.checkpoint(run, policy=eqn.params["policy"])
            yield max(_kept_bytes(run, specs) - _kept_bytes(saving, specs), 0)
        elif eqn.primitive.name not in LOOPS:
            for one in inside(eqn.params):
                yield from _parts(one)


def _has_loop(eqn: Any) -> bool:
    return eqn.primitive.name in LOOPS or any(
        _has_loop(one) for jaxpr in inside(eqn.params) for one in jaxpr.eqns
    )


def _in_loops(jaxpr: Any) -> int:
    """Bytes of the parts that a turn of the largest loop computes again."""
    found = [0]
    for eqn in jaxpr.eqns:
        for one in inside(eqn.params) if not _is_part(eqn) else ():
            found.append(_in_loops(one))
            if eqn.primitive.name in LOOPS:
                found.append(sum(_parts(one)))
    return max(found)
