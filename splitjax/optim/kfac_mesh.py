"""K-FAC on a mesh: where gradients are taken, and where its state lies."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from splitjax.core.tree import Tree, path_name
from splitjax.optim.curvature import TAPS
from splitjax.optim.kfac import KfacState
from splitjax.optim.kronecker import METHODS, Curvature, identity
from splitjax.optim.stack import Stack, check_shards, stacks


def on_owner(params: Tree, axis_name: str, shards: int) -> Tree:
    """Params at which a device of a mesh takes its gradients, inside of `shard_map`.

    They are marked as varying, so that gradients are of this device's examples alone;
    and the taps of layers that another device owns are marked, so that their factors
    are not computed here.

    Args:
      params: with taps, the same on all devices.
      axis_name: as in `dp_kfac`.
      shards: as in `dp_kfac`.

    Example:
      >>> from splitjax.optim.curvature import with_taps
      >>> params = with_taps({"kernel": jnp.ones((2, 1))})
      >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
      >>> run = jax.shard_map(lambda p: on_owner(p, "data", 1), mesh=mesh,
      ...     in_specs=PartitionSpec(), out_specs=PartitionSpec("data"))
      >>> run(params)["tap_kfac"].tap_a.shape
      (3, 3)
    """
    check_shards(axis_name, shards)
    here, mine = jax.lax.axis_index(axis_name), {}
    for one in stacks(params, shards):
        owner = jnp.arange(one.length) // (one.length // shards) != here
        start = 0
        for path, rows in zip(one.layers, one.rows, strict=True):
            for name in ("tap_a", "tap_g"):
                mine[f"{path}{TAPS}/{name}"] = owner[start : start + rows]
            start += rows

    def mark(path, leaf):
        leaf = jax.lax.pcast(leaf, (axis_name,), to="varying")
        if (other := mine.get(path_name(path))) is None:
            return leaf
        other = other if leaf.ndim == 3 else other[0]
        last = leaf[..., -1, -1]
        return leaf.at[..., -1, -1].set(jnp.where(other, jnp.ones_like(last), last))

    return jax.tree_util.tree_map_with_path(mark, params)


def state_specs(state: KfacState, axis_name: str) -> KfacState:
    """How the state lies on a mesh: for `shard_map`, and for shardings.

    Example:
      >>> import optax
      >>> from splitjax.optim import dp_kfac, with_taps
      >>> params = with_taps({"kernel": jnp.ones((2, 1))})
      >>> state = dp_kfac(optax.sgd(1), kl_clip=None).init(params)
      >>> state_specs(state, "data").curvature["2x1"].a == PartitionSpec("data")
      True
    """
    specs = jax.tree.map(lambda _: PartitionSpec(), state)
    owned = jax.tree.map(lambda _: PartitionSpec(axis_name), state.curvature)
    return specs._replace(curvature=owned)


def reshard(state: KfacState, params: Tree, shards: int) -> KfacState:
    """The state of one mesh for another: paddings are made anew, the rest stays.

    Args:
      state: global arrays, of any number of shards.
      params: with taps.
      shards: the new number.

    Example:
      >>> import optax
      >>> from splitjax.optim import dp_kfac, with_taps
      >>> params = with_taps({"kernel": jnp.ones((2, 1))})
      >>> state = dp_kfac(optax.sgd(1), kl_clip=None).init(params)
      >>> reshard(state, params, 3).curvature["2x1"].a.shape
      (3, 2, 2)
    """

    def again(one: Stack, old: Curvature) -> Curvature:
        method = METHODS[len(old.inverse) > 2]
        empty = identity(one.length, one.inputs, one.outputs, method)
        rows = sum(one.rows)
        return jax.tree.map(
            lambda a, b: jnp.concatenate([a[:rows], b[rows:]]), old, empty
        )

    made = {
        one.name: again(one, state.curvature[one.name])
        for one in stacks(params, shards)
    }
    return state._replace(curvature=made)
