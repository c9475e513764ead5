"""A stack of equal blocks as a pipeline in one program for all devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from splitjax.core.keys import fold
from splitjax.core.stage import Repeat, Stage
from splitjax.core.tree import Tree

Policy = Callable[..., bool] | None


def pipelined(
    stack: Repeat, mesh: Mesh, *, microbatches: int, policy: Policy = None
) -> Stage:
    """A stack of L blocks, of which each of the p places on "pipe" runs L / p.

    At tick t place s runs microbatch t - s and gives what it made to place s + 1; after
    n + p - 1 ticks all are through: a place is idle (p - 1) / (n + p - 1) of the time.
    Its gradient is that of the program, so the backward pass is the pipeline in
    reverse, and each place computes its blocks again from their input (n + p - 1 inputs
    are kept) but for what `policy` saves. All places have one policy, since all run one
    program; for unequal stages, other schedules, and recomputation by place see
    `parallel.mpmd`.

    "pipe" alone is programmed by hand: what lies over other axes of the mesh (rows over
    "data", kernels over "tensor" by `rules.place(..., stacked=...)`) stays the
    compiler's. While places are idle they run on rows of the batch whose results nobody
    reads, not on zeros, at which a derivative might be no number.

    Args:
      stack: `core.stage.repeat(block, L)`. Its blocks have no state (a norm's
        statistics would come of a microbatch).
      mesh: with an axis "pipe" of size p, which divides L.
      microbatches: n; with "data" of the mesh, n * data divides the batch. Microbatch i
        has the rows i, i + n, i + 2 n, ...: none is sent to another device.
      policy: of `jax.checkpoint_policies`: what a place keeps instead of computing it
        again. None: nothing.

    Returns:
      A stage of the same parameters (L, ...), inputs and outputs. A scalar of a block's
      `aux` is the mean over microbatches. Dropout draws by (microbatch, block), so its
      numbers do not depend on p, but are others than those of `stack` itself.

    Raises:
      ValueError: for a stage that is no stack (any more), or several policies; when the
        mesh has no "pipe", p does not divide L, or n < 1; on use, for a batch
        that is not divided, or blocks with a state.

    Example:
      >>> from splitjax.core.stage import repeat
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> double = Stage("double", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (2 * x, s, {}))
      >>> mesh = make_cloud_mesh("pipe=1", devices=jax.devices()[:1])
      >>> stage = pipelined(repeat(double, 3), mesh, microbatches=2)
      >>> run = jax.jit(lambda x: stage.apply({}, {}, x, key=None, train=False)[0])
      >>> run(jnp.arange(4.0)).tolist()
      [0.0, 8.0, 16.0, 24.0]

    Reference:
      Huang et al., GPipe: Efficient training of giant neural networks using pipeline
      parallelism, 2018 (arXiv:1811.06965): the schedule.
    Differs:
      the last place hands its output to all of them, for the stages that follow.
    """
    if not isinstance(stack, Repeat):
        raise ValueError(
            f"{stack.name!r} is no core.stage.repeat, or was wrapped since: a pipeline "
            "opens the stack, so wrap the block that is repeated"
        )
    if policy is not None and not callable(policy):
        raise ValueError(
            f"policy={policy!r}: one of jax.checkpoint_policies for all places, which "
            "run one program; parallel.mpmd recomputes by stage"
        )
    p, count, n = mesh.shape.get("pipe", 0), stack.count, microbatches
    if not p:
        raise ValueError(
            f"a pipeline over a mesh of {dict(mesh.shape)}: no axis 'pipe'; name it, "
            "as in 'data=2,pipe=4'"
        )
    if count % p:
        raise ValueError(
            f"{count} blocks of {stack.name!r} on pipe={p}: p divides them, or take "
            "parallel.mpmd, whose stages may be unequal"
        )
    if n < 1:
        raise ValueError(f"microbatches={n}: 1 or more")

    def apply(params: Tree, state: Tree, x: Tree, *, key, train):
        if jax.tree.leaves(state):
            raise ValueError(
                f"{stack.name!r} has a state (statistics of a batch): in a pipeline it "
                "would come of microbatches; take a norm without one"
            )
        rows = _parted(x, n, mesh)

        def places(params, rows, data):
            own = None if data is None else jax.random.wrap_key_data(data)
            return _places(
                stack, params, state, rows, own, p=p, train=train, policy=policy
            )

        everywhere, over = PartitionSpec(), PartitionSpec("pipe")
        run = jax.shard_map(
            places,
            mesh=mesh,
            in_specs=(over, everywhere, everywhere),
            out_specs=(everywhere, over),
            axis_names={"pipe"},
        )
        if p == 1:  # XLA refuses to sum over one place beside other axes
            run = places
        data = None if key is None else jax.random.key_data(key)
        y, aux = run(params, rows, data)
        if "loss" in aux:
            aux = {**aux, "loss": aux["loss"].sum()}
        return jax.tree.map(_joined, y), state, aux

    return Stage(stack.name, stack.init, apply, tags=stack.tags)


def _parted(x: Tree, n: int, mesh: Mesh) -> Tree:
    """Microbatches (n, B / n, ...) of strided rows, which stay where they are."""
    data = mesh.shape.get("data", 1)
    spec = PartitionSpec(None, *(name for name in ("data",) if name in mesh.shape))

    def one(leaf):
        if leaf.ndim < 1 or len(leaf) % (n * data):
            raise ValueError(
                f"a batch of shape {leaf.shape} in {n} microbatches on data={data}: "
                f"its rows must be a multiple of {n * data}"
            )
        rows = leaf.reshape(-1, n, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, spec))

    return jax.tree.map(one, x)


def _joined(rows: jax.Array) -> jax.Array:
    return rows.swapaxes(0, 1).reshape(-1, *rows.shape[2:])


def _places(
    stack: Repeat, params: Tree, state: Tree, rows: Tree, key, *, p, train, policy
):
    """What each place does; `params` are its own, (L / p, ...), `state` is empty."""
    place = jax.lax.axis_index("pipe") if p > 1 else jnp.int32(0)
    n, each = len(jax.tree.leaves(rows)[0]), stack.count // p
    down = [(i, i + 1) for i in range(p - 1)]

    def blocks(params, x, number):
        """The blocks of this place on microbatch `number`."""

        def one(x, row):
            params, block = row
            own = fold(key, number, block)
            x, _, aux = stack.block.apply(params, state, x, key=own, train=train)
            return x, aux

        first = stack.first + place * each
        return jax.lax.scan(one, x, (params, first + jnp.arange(each)))

    blocks = jax.checkpoint(blocks, policy=policy)

    def tick(came, t):
        number = t - place
        fresh = jax.tree.map(lambda a: a[jnp.minimum(t, n - 1)], rows)
        x = jax.tree.map(lambda a, b: jnp.where(place == 0, a, b), fresh, came)
        y, aux = blocks(params, x, jnp.clip(number, 0, n - 1))
        real = (number >= 0) & (number < n)
        aux = jax.tree.map(lambda a: jnp.where(real, a, 0) / n, aux)
        on = jax.tree.map(lambda a: jax.lax.ppermute(a, "pipe", down), y) if down else y
        return on, (y, aux)

    start = jax.tree.map(lambda a: _varying(a[0]) if p > 1 else a[0], rows)
    _, (y, aux) = jax.lax.scan(tick, start, jnp.arange(n + p - 1))
    if p > 1:
        y = jax.tree.map(lambda a: _from_last(a[p - 1 :], place == p - 1), y)
    return y, jax.tree.map(lambda a: a.sum(0), aux)


def _varying(a: jax.Array) -> jax.Array:
    return jax.lax.pcast(a, ("pipe",), to="varying")


def _from_last(a: jax.Array, is_last: jax.Array) -> jax.Array:
    """What the last place has, on all of them; a sum, since the others give zeros."""
    kept = jnp.where(is_last, a, jnp.zeros_like(a))
    if a.dtype == jnp.bool_:
        return jax.lax.psum(kept.astype(jnp.int32), "pipe") != 0
    return jax.lax.psum(kept, "pipe")
