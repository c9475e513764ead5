"""Flax NNX modules as stages. `flax.nnx` is imported on use only."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from splitjax.core.keys import fold
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree

if TYPE_CHECKING:
    from flax import nnx


def flax_nnx():
    """The library, imported on the first call: the house's one door to it.

    Linen alone works on more versions of JAX, and an edge need not load both.

    Example:
      >>> flax_nnx().__name__
      'flax.nnx'
    """
    from flax import nnx

    return nnx


def from_nnx(module: "nnx.Module", name: str, *, tags: Iterable[str] = ()) -> Stage:
    """Makes an NNX module a stage, split once at the border.

    From then on there is no NNX in a step but for its trace: `params` is the pure dict
    of the `nnx.Param` variables, with the paths that Linen gives the same model;
    `state` is a dict by collection (`batch_stats`) of the rest. Random streams are set
    anew in every call, each from the stage's key folded with the stream's path.
    `train` switches the module as `module.train()` and `module.eval()` do.

    Args:
      module: a module whose call takes one array or pytree. It is left as it is; see
        `nnx_update`.
      name: the stage's name.
      tags: see `Stage`.

    Returns:
      A stage. Its `init` copies the values that the module holds now, whatever the key
      and the spec: an NNX module is born with its parameters.

    Raises:
      TypeError: when it is no NNX module.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> stage = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), "head")
      >>> params, state = stage.init(jax.random.key(0), None)
      >>> params["kernel"].shape, state
      ((3, 2), {})
    """
    nnx = flax_nnx()
    if not isinstance(module, nnx.Module):
        raise TypeError(f"from_nnx needs an nnx.Module: {type(module).__name__}")
    graphs = {}
    for train in (True, False):
        twin = nnx.clone(module)
        if train:
            twin.train()
        else:
            twin.eval()
        graphs[train], own, streams, rest = _split(twin)
    typed = {path: leaf for path, leaf in nnx.to_flat_state(rest)}

    def init(key, spec):
        copy = jax.tree.map(jnp.array, (nnx.to_pure_dict(own), _by_name(typed)))
        return copy[0], copy[1]

    def apply(params, state, x, *, key, train):
        flat = {path: _get(state, leaf, path) for path, leaf in typed.items()}
        live = nnx.merge(
            graphs[train],
            _filled(own, params),
            _seeded(streams, key),
            _with(rest, flat),
        )
        y = live(x)
        return y, _by_name(dict(nnx.to_flat_state(_split(live)[3]))), {}

    return Stage(name, init, apply, tags=frozenset(tags))


def nnx_update(module: "nnx.Module", params: Tree, state: Tree) -> None:
    """Writes trained parameters and state of a stage back into its module.

    Args:
      module: the module that `from_nnx` was given; it is changed.
      params: the stage's parameters.
      state: the stage's state.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> linear = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> nnx_update(linear, {"kernel": jnp.full((1, 1), 3.0)}, {})
      >>> linear.kernel[...].item()
      3.0
    """
    nnx = flax_nnx()
    _, own, _, rest = _split(module)
    typed = dict(nnx.to_flat_state(rest))
    flat = {path: _get(state, leaf, path) for path, leaf in typed.items()}
    nnx.update(module, _filled(own, params), _with(rest, flat))


def _split(module: Any) -> tuple[Any, ...]:
    """Graph, parameters, random streams and the rest."""
    nnx = flax_nnx()
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _filled(own, params: Tree):
    """The state `own` with the values of a pure dict."""
    nnx = flax_nnx()
    new = jax.tree.map(lambda a: a, own)
    nnx.replace_by_pure_dict(new, params)
    return new


def _collection(leaf) -> str:
    nnx = flax_nnx()
    return nnx.variable_name_from_type(type(leaf))


def _by_name(typed: dict) -> dict:
    """Nested dicts, first by collection and then by path, of variables by path."""
    out: dict = {}
    for path, leaf in typed.items():
        node = out.setdefault(_collection(leaf), {})
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf[...]
    return out


def _get(state: dict, leaf, path: tuple):
    node = state[_collection(leaf)]
    for part in path:
        node = node[part]
    return node


def _with(rest, flat: dict):
    """The state `rest` with new values by path."""
    nnx = flax_nnx()
    return nnx.from_flat_state(
        [(path, leaf.replace(flat[path])) for path, leaf in nnx.to_flat_state(rest)]
    )


def _seeded(streams, key):
    """Random streams that start anew, each from the key folded with its path."""
    nnx = flax_nnx()
    if key is None:
        return streams

    def one(path, leaf):
        if not issubclass(type(leaf), nnx.RngKey):
            return leaf.replace(jnp.zeros_like(leaf[...]))
        own = fold(key, "/".join(map(str, path)))
        shape = leaf[...].shape
        return leaf.replace(jax.random.split(own, shape) if shape else own)

    return nnx.from_flat_state(
        [(path, one(path, leaf)) for path, leaf in nnx.to_flat_state(streams)]
    )
