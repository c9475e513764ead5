"""Split learning with any number of cuts: plain, U-shaped, and un-split."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from splitjax.algorithms.party import Party, lanes, predict
from splitjax.core.algorithm import Algorithm, Hop, add_metrics
from splitjax.core.memory import blank, fill, memories
from splitjax.core.split import BACKWARD, FORWARD, Split
from splitjax.optim.apply import apply_updates
from splitjax.optim.clip import square_norm
from splitjax.privacy.detector import Scrutinizer


def split_learning(
    split: Split,
    edge_tx: optax.GradientTransformation,
    cloud_tx: optax.GradientTransformation | None = None,
    *,
    micro: int = 1,
    exact_norm: bool = False,
    watch: Scrutinizer | None = None,
) -> Algorithm:
    """One edge and one cloud train one model; every slot is a run of its own.

    The segments are visited there and back: 0, 1, ..., n-1 (loss), ..., 1, 0. Edge and
    cloud own them in turn, so a visit is half a hop. With two segments the labels
    travel to the cloud; with three, the last on the edge, they stay (the U shape); with
    one there is no hop at all: the un-split run.

    Args:
      split: owners "edge", "cloud", "edge", ... from the first.
      edge_tx: the edge's optimizer; called with `step=`, with `model_state=` (the state
        of its segments) and, where the norm is exact, with `sq_norm=`.
      cloud_tx: the cloud's; by default the same.
      micro: ticks (micro-batches) in one optimizer step.
      exact_norm: one more hop at the end of a step sends the square of the norm of the
        edge's gradient up and the total down. Otherwise norms are per party.
      watch: on the edge, of the gradients that it gets (see `privacy.scrutinizer`); its
        verdict is in the metrics: "gap", "hijacked" and "blown_up".

    Returns:
      An algorithm. A batch is `{"x", "target", "weight"}`: the model's input, what the
      loss takes, and the micro-batch's share of its step's examples, a float32.

    Raises:
      ValueError: when owners do not alternate, micro < 1, or there is something to
        watch and no gradient comes.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from splitjax.core.algorithm import At
      >>> from splitjax.core.cut import cut
      >>> from splitjax.core.stage import Stage
      >>> scale = Stage("a", init=lambda key, spec: ({"k": jnp.float32(2)}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x * p["k"], s, {}))
      >>> split = Split(cut([scale]), (), lambda y, t: (jnp.mean((y - t) ** 2), {}))
      >>> algorithm = split_learning(split, optax.sgd(0.1))
      >>> x = jnp.ones(4)
      >>> edge, _, _ = algorithm.init(*split.init(jax.random.key(0), x), x)
      >>> batch = {"x": x, "target": 0 * x, "weight": jnp.float32(1)}
      >>> at = At(jax.random.key(0), 0, 0, 0)
      >>> edge, metrics = algorithm.last(edge, {}, batch, None, at)
      >>> float(metrics["loss"]), round(float(edge["params"]["0"]["a"]["k"]), 3)
      (4.0, 1.6)

    Reference:
      Gupta and Raskar, Distributed learning of deep neural network over multiple
      agents, 2018, arXiv 1810.06060; Vepakomma et al., Split learning for health, 2018,
      arXiv 1812.00564 (U shape).
    Differs:
      Both parties step at once instead of an edge waiting for its weights from the edge
      before it; the optimizer is any optax one.
    """
    count = len(split)
    expected = tuple(("edge", "cloud")[i % 2] for i in range(count))
    if split.cut.owners != expected:
        raise ValueError(
            f"owners must be edge and cloud in turn, the edge first: {expected}; "
            f"given: {split.cut.owners}. The edge holds the data."
        )
    if micro < 1:
        raise ValueError(f"micro must be 1 or more: {micro}")
    if watch and (count == 1 or split.frozen):
        raise ValueError("a scrutinizer needs an edge that gets gradients: none come")
    party = Party(split, micro, watch)
    turns = 2 * (count - 1) - split.frozen
    txs = {
        "edge": optax.with_extra_args_support(edge_tx),
        "cloud": optax.with_extra_args_support(cloud_tx or edge_tx),
    }
    # A party's last visit, where it has all of its gradient; None where it has none.
    visits = {"edge": range(0, turns + 1, 2), "cloud": range(1, turns + 1, 2)}
    final = {
        owner: max((v for v in mine if v >= count - 1), default=None)
        for owner, mine in visits.items()
    }
    both = None not in final.values()
    if exact_norm and both and split.frozen:
        raise ValueError(
            "an exact norm over the cut with frozen segments and labels on the edge is "
            "not supported: take exact_norm=False (norms per party)"
        )
    sync = exact_norm and both

    def init(params, state, x):
        links = split.init_links(params, state, x)
        made = {}
        for owner in ("edge", "cloud"):
            mine = [i for i in range(count) if expected[i] == owner]
            own = {str(i): params[i] for i in mine}
            trained = party.trained(own)
            entry = {
                "params": own,
                "opt": txs[owner].init(trained) if trained else (),
                "acc": jax.tree.map(jnp.zeros_like, trained) if micro > 1 else (),
            }
            entry |= {f"state/{i}": state[i] for i in mine}
            for number, ends in enumerate(links):
                entry[f"link/{number}/smooth"] = ends["smooth"]
                tx = FORWARD if expected[number] == owner else BACKWARD
                for direction in (FORWARD, BACKWARD):
                    end = "tx" if direction == tx else "rx"
                    entry[f"link/{number}/{direction}"] = blank(ends[direction][end])
            made[owner] = entry if mine else {}
        if watch:
            made["edge"]["watch"] = watch.init()
        return made["edge"], (), made["cloud"]

    def remember(edge, shared, slot, x):
        del shared
        links = split.init_links(*segments(edge, slot), x)

        def filled(held, owner):
            new = dict(held)
            for number, direction in itertools.product(
                range(len(links)), (FORWARD, BACKWARD)
            ):
                sends = (direction == FORWARD) == (expected[number] == owner)
                one = links[number][direction]["tx" if sends else "rx"]
                name = f"link/{number}/{direction}"
                new[name] = fill(held[name], memories(one))
            return new

        return filled(edge, "edge"), filled(slot, "cloud") if slot else slot

    def segments(edge, slot):
        """Parameters and state of all segments, in order."""
        owner = {"edge": edge, "cloud": slot}
        mine = [owner[expected[i]] for i in range(count)]
        params = tuple(held["params"][str(i)] for i, held in enumerate(mine))
        return params, tuple(held[f"state/{i}"] for i, held in enumerate(mine))

    def merge(edge, shared, slot):
        del shared
        params, state = segments(edge, slot)
        return split.cut.merge(params), split.cut.merge(state)

    def run(owner, visit, mine, live, batch, message, at):
        changes, live, out, metrics = party.visit(visit, mine, live, batch, message, at)
        if visit == final[owner]:
            mine = {**mine, **changes}
            grads = live["grads"]
            if micro > 1 and grads:
                grads = jax.tree.map(jnp.add, mine["acc"], grads)
            if not at.apply:
                changes = {**changes, "acc": grads}
            elif sync:
                live = {"grads": grads, "metrics": live.get("metrics", {})}
            else:
                changes = step(owner, mine, grads, at)
        return changes, live, out, metrics

    def step(owner, mine, grads, at, **extra):
        if not grads:
            return mine
        params = party.trained(mine["params"])
        norms = {index: mine[f"state/{index}"] for index in params}
        # Optax raises a float to an integer power; a strict user must not suffer.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = txs[owner].update(
                grads, mine["opt"], params, step=at.step, model_state=norms, **extra
            )
        new: Any = apply_updates(params, updates)
        params = {**mine["params"], **new}
        acc = jax.tree.map(jnp.zeros_like, grads) if micro > 1 else ()
        return {**mine, "params": params, "opt": opt, "acc": acc}

    def add_live(live, metrics):
        return {**live, "metrics": add_metrics(live.get("metrics", {}), metrics)}

    def edge_hop(visit):
        def edge(mine, live, batch, down, at):
            changes, live, up, new = run("edge", visit, mine, live, batch, down, at)
            return changes, add_live(live, new), up

        return edge

    def cloud_hop(visit):
        def one(mine, live, up, at):
            return run("cloud", visit, mine, live, {}, up, at)

        return lanes(one)

    def last(mine, live, batch, down, at):
        if sync and at.apply:
            total = down["sq_norm"]
            changes = step("edge", mine, live["grads"], at, sq_norm=total)
            return changes, live["metrics"]
        changes, live, _, new = run("edge", turns, mine, live, batch, down, at)
        return changes, add_live(live, new)["metrics"]

    def norm_edge(mine, live, batch, down, at):
        changes, live, _, new = run("edge", turns, mine, live, batch, down, at)
        return changes, add_live(live, new), {"sq_norm": square_norm(live["grads"])}

    def norm_cloud(mine, live, up, at):
        total = up["sq_norm"] + square_norm(live["grads"])
        changes = step("cloud", mine, live["grads"], at, sq_norm=total)
        return changes, {}, {"sq_norm": total}, {"norm": jnp.sqrt(total)}

    pairs = tuple(
        Hop(edge_hop(2 * k), cloud_hop(2 * k + 1)) for k in range((turns + 1) // 2)
    )
    norm_hop = (Hop(norm_edge, lanes(norm_cloud)),) if sync else ()
    return Algorithm(
        init=init,
        hops=lambda apply: pairs + (norm_hop if apply else ()),
        last=last if turns % 2 == 0 else None,
        predict=predict(party),
        merge=merge,
        once=split.frozen > 0,
        renewed=("acc",) if micro > 1 else (),
        remember=remember,
    )
