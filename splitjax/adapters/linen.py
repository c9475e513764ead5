"""Flax Linen modules as stages."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from flax import linen as nn

from splitjax.core.keys import fold
from splitjax.core.stage import Stage

# How modules call the flag that we call `train`, and what they expect to find in it.
FLAGS: dict[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
}


def from_linen(
    module: nn.Module,
    name: str | None = None,
    *,
    method: str | Callable[..., Any] | None = None,
    rngs: Iterable[str] = ("dropout",),
    aux: Callable[[Any], dict[str, Any]] | None = None,
    tags: Iterable[str] = (),
) -> Stage:
    """Makes a Linen module a stage.

    The parameters are `variables["params"]`; the state is a dict of every other
    collection that `init` makes (`batch_stats`). A flag `train`, `deterministic` or
    `use_running_average` is passed when the method has an argument of that name which
    the module has not fixed as a field.

    Args:
      module: a module whose method takes one array or pytree.
      name: the stage's name; the module's own by default.
      method: which method is the stage's; `__call__` by default.
      rngs: the streams of random numbers that the method draws from.
      aux: of a method that gives a pair: makes of its second part what the stage
        reports besides its output; see `Stage`.
      tags: see `Stage`.

    Raises:
      ValueError: when neither the call nor the module gives a name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> stage = from_linen(nn.Dense(2), "head")
      >>> params, state = stage.init(
      ...     jax.random.key(0), jax.ShapeDtypeStruct((4, 3), jnp.float32))
      >>> params["kernel"].shape, state
      ((3, 2), {})
    """
    name = name or module.name
    if not name:
        raise ValueError(f"from_linen({type(module).__name__}) needs a name")
    if isinstance(method, str):
        method = getattr(type(module), method)
    rngs = tuple(rngs)
    flag = _flag(module, method or type(module).__call__)

    def init(key, spec):
        streams = {stream: fold(key, stream) for stream in ("params", *rngs)}
        variables = module.lazy_init(streams, spec, method=method, **flag(False))
        state = dict(variables)
        return state.pop("params", {}), state

    def apply(params, state, x, *, key, train):
        streams = {} if key is None else {stream: fold(key, stream) for stream in rngs}
        y, new = module.apply(
            {"params": params, **state},
            x,
            rngs=streams,
            method=method,
            mutable=list(state),
            **flag(train),
        )
        y, told = y if aux else (y, None)
        return y, {**state, **new}, aux(told) if aux else {}

    return Stage(name, init, apply, tags=frozenset(tags))


def _flag(module: nn.Module, method: Callable) -> Callable[[bool], dict[str, bool]]:
    """What to pass besides the input, found once from the method's arguments."""
    arguments = inspect.signature(method).parameters
    found = [
        flag
        for flag in FLAGS
        if flag in arguments and getattr(module, flag, None) is None
    ]
    return lambda train: {flag: FLAGS[flag](train) for flag in found}
