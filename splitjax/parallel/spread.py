"""The cloud's half of any algorithm on a mesh; edges and what crosses stay the same."""

import dataclasses
import warnings
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from splitjax.core.algorithm import Algorithm, Hop
from splitjax.core.tree import Tree
from splitjax.parallel.apart import apart
from splitjax.parallel.rules import RULES, Rule, layout, place, place_like


def spread(
    algorithm: Algorithm, mesh: Mesh, *, rules: Sequence[Rule] = RULES
) -> Algorithm:
    """The same algorithm, whose cloud computes on a mesh.

    The cloud's parameters lie as the rules say, its optimizer's state with them, and
    the rows of what an edge sends over "data"; they stay so from step to step. Messages
    are as before, so the edge, the link and the meter know nothing of it, and the
    numbers are those of one device but for the order of sums. (So a cloud may come back
    on another mesh at a checkpoint, not between two: what it does again must give the
    same bits.)

    Args:
      algorithm: any; what it holds for an edge has its parameters under "params".
      mesh: see `make_cloud_mesh`. Over "pipe" each array that is held lies apart, along
        its longest axis that the rules leave free. Its places compute the same, but for
        blocks that the algorithm's split runs as a pipeline: see `piped`.
      rules: see `place`.

    Warns:
      UserWarning: from `init`; see `place`. And for rows that "data" does not divide:
        they are whole on every device, which is right but saves nothing.

    Example:
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> mesh = make_cloud_mesh("data=1", devices=jax.devices()[:1])
      >>> def cloud(shared, slots, live, ups, ats):
      ...     grown = tuple({"params": {"bias": s["params"]["bias"] + up}}
      ...         for s, up in zip(slots, ups))
      ...     return shared, grown, live, ups, {}
      >>> hop = Hop(lambda *args: ({}, {}, 1.0), cloud)
      >>> slot = {"params": {"bias": jax.numpy.zeros(2)}}
      >>> alone = Algorithm(lambda *args: ({}, (), slot), lambda apply: (hop,), None)
      >>> both = spread(alone, mesh)
      >>> held = both.init((), (), ())[2]
      >>> up = (jax.numpy.ones(2),)
      >>> [made] = both.hops(True)[0].cloud((), (held,), ({},), up, ())[1]
      >>> made["params"]["bias"].tolist(), made["params"]["bias"].sharding.mesh == mesh
      ([1.0, 1.0], True)
    """
    width, places = (mesh.shape.get(axis, 1) for axis in ("data", "pipe"))
    rows = NamedSharding(mesh, PartitionSpec(*[a for a in ["data"] if width > 1]))

    def params_of(held: Tree) -> Tree:
        return held.get("params", {}) if isinstance(held, dict) else {}

    def laid(tree: Tree, params: Tree) -> Tree:
        whole, lines = layout(params, mesh, rules=rules)
        over, _ = apart(params, whole, lines, places, over="pipe")
        over = place_like(tree, params, over, mesh)
        return jax.tree.map(jax.lax.with_sharding_constraint, tree, over)

    def row(leaf):
        if leaf.ndim and len(leaf) and len(leaf) % width == 0:
            return jax.lax.with_sharding_constraint(leaf, rows)
        return leaf

    def init(params, state, x):
        edge, shared, slot = algorithm.init(params, state, x)
        for held in (shared, slot):
            place(params_of(held), mesh, rules=rules)  # tells of what is whole
        counts = {leaf.shape[0] for leaf in jax.tree.leaves(x) if leaf.ndim}
        if odd := sorted(count for count in counts if count % width):
            warnings.warn(
                f"{', '.join(map(str, odd))} rows are not divided by data={width}: "
                "they are whole on every device; take a batch_size that it divides",
                stacklevel=2,
            )
        return edge, laid(shared, params_of(shared)), laid(slot, params_of(slot))

    def on_mesh(hop: Hop) -> Hop:
        def cloud(shared, slots, live, ups, ats):
            params = [params_of(slot) for slot in slots]
            common = params_of(shared)
            slots = tuple(map(laid, slots, params))
            ups = jax.tree.map(row, ups)
            shared, changes, live, downs, metrics = hop.cloud(
                laid(shared, common), slots, live, ups, ats
            )
            changes = tuple(map(laid, changes, params))
            return laid(shared, common), changes, live, downs, metrics

        return Hop(hop.edge, cloud)

    predict = algorithm.predict
    return dataclasses.replace(
        algorithm,
        init=init,
        hops=lambda apply: tuple(map(on_mesh, algorithm.hops(apply))),
        predict=predict and (tuple(map(on_mesh, predict[0])), predict[1]),
    )
