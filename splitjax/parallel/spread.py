"""The cloud's half of any algorithm on a mesh; edges and what crosses stay the same."""

import dataclasses
import warnings
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from splitjax.core.algorithm import Algorithm, Hop
from splitjax.core.tree import Tree
from splitjax.parallel.apart import GRADIENTS, PARAMETERS, STATE, apart, on_host
from splitjax.parallel.rules import (
    RULES,
    Placed,
    Rule,
    layout,
    place,
    place_like,
    place_rows,
    table,
)

# From which stage of ZeRO on an entry of what a cloud holds lies apart over "data".
FROM = {"opt": STATE, "acc": GRADIENTS, "grads": GRADIENTS, "params": PARAMETERS}


def spread(
    algorithm: Algorithm,
    mesh: Mesh,
    *,
    rules: Sequence[Rule] = RULES,
    zero: int = 0,
    offload: bool = False,
) -> Algorithm:
    """The same algorithm, whose cloud computes on a mesh.

    The cloud's parameters lie as the rules say, its optimizer's state with them, and
    the rows of what an edge sends over "data"; they stay so from step to step. Messages
    are as before, so the edge, the link and the meter know nothing of it, and the
    numbers are those of one device but for the order of sums. (So a cloud may come back
    on another mesh at a checkpoint, not between two: what it does again must give the
    same bits.)

    With a stage of ZeRO each device holds 1/W of the leaves that `FROM` names, of W
    places on "data": what is held between two programs, or leaves one. Within a program
    the compiler places gradients as it likes.

    Args:
      algorithm: any; what it holds for an edge has its parameters under "params", its
        optimizer's state under "opt", and sums of gradients under "acc".
      mesh: see `make_cloud_mesh`. Over "pipe" each array that is held lies apart, along
        its longest axis that the rules leave free. Its places compute the same, but for
        blocks that the algorithm's split runs as a pipeline: see `piped`.
      rules: see `place`.
      zero: the stage; see `Scale`.
      offload: whether the optimizer's state waits in the host's memory from one program
        to the next.

    Warns:
      UserWarning: from `init`; see `place`. And for rows that "data" does not divide,
        or leaves that ZeRO cannot part, where they are more than a hundredth of all:
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

    def params_of(held: Tree) -> Tree:
        return held.get("params", {}) if isinstance(held, dict) else {}

    def laid(tree: Tree, params: Tree, *, home: bool = False) -> Tree:
        """What a cloud holds where it lies: at home between two programs."""
        whole, lines = layout(params, mesh, rules=rules)
        whole, _ = apart(params, whole, lines, places, over="pipe")
        parted, _ = apart(params, whole, lines, width)

        def one(name: str, held: Tree) -> Tree:
            over = parted if zero >= FROM.get(name, PARAMETERS + 1) else whole
            lie = place_like(held, params, over, mesh)
            if not offload or name != "opt":
                return jax.tree.map(jax.lax.with_sharding_constraint, held, lie)
            if home:
                lie = jax.tree.map(on_host, lie)
            return jax.tree.map(jax.device_put, held, lie)

        if not isinstance(tree, dict):
            return one("", tree)
        return {name: one(name, held) for name, held in tree.items()}

    def row(leaf):
        over = place_rows(leaf, mesh)
        return jax.lax.with_sharding_constraint(leaf, over) if over else leaf

    def init(params, state, x):
        edge, shared, slot = algorithm.init(params, state, x)
        for held in (shared, slot):
            params = params_of(held)
            whole, lines = place(params, mesh, rules=rules)  # tells of what is whole
            if zero:
                _tell(params, lines, apart(params, whole, lines, width)[1])
        counts = {leaf.shape[0] for leaf in jax.tree.leaves(x) if leaf.ndim}
        if left := sorted(count for count in counts if count % width):
            warnings.warn(
                f"{', '.join(map(str, left))} rows are not divided by data={width}: "
                "they are whole on every device; take a batch_size that it divides",
                stacklevel=2,
            )
        shared, slot = (laid(h, params_of(h), home=True) for h in (shared, slot))
        return edge, shared, slot

    def on_mesh(hop: Hop) -> Hop:
        def cloud(shared, slots, live, ups, ats):
            params = [params_of(slot) for slot in slots]
            common = params_of(shared)
            slots = tuple(map(laid, slots, params))
            ups = jax.tree.map(row, ups)
            shared, changes, live, downs, metrics = hop.cloud(
                laid(shared, common), slots, live, ups, ats
            )
            pairs = zip(changes, params, strict=True)
            changes = tuple(laid(held, own, home=True) for held, own in pairs)
            if zero >= GRADIENTS:  # those that wait for the next program
                pairs = zip(live, params, strict=True)
                live = tuple(
                    held | laid({k: held[k] for k in held if k == "grads"}, own)
                    for held, own in pairs
                )
            return laid(shared, common, home=True), changes, live, downs, metrics

        return Hop(hop.edge, cloud)

    predict = algorithm.predict
    return dataclasses.replace(
        algorithm,
        init=init,
        hops=lambda apply: tuple(map(on_mesh, algorithm.hops(apply))),
        predict=predict and (tuple(map(on_mesh, predict[0])), predict[1]),
    )


def _tell(params: Tree, before: Sequence[Placed], after: Sequence[Placed]) -> None:
    """Warns of leaves that ZeRO leaves whole; a few biases are not worth it."""
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    lines = zip(before, after, sizes, strict=True)
    odd = [(new, n) for old, new, n in lines if new.problem and not old.problem]
    if 100 * sum(size for _, size in odd) > sum(sizes):
        text = table([line for line, _ in odd])
        warnings.warn(f"not divided by ZeRO:\n{text}", stacklevel=3)
