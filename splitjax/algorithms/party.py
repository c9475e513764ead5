"""What the owner of some segments does when a tick visits one of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.algorithm import Hop, add_metrics
from splitjax.core.codec import Context, newly_nonfinite
from splitjax.core.memory import ids_of
from splitjax.core.message import gradient_of
from splitjax.core.split import BACKWARD, FORWARD, Split
from splitjax.core.tree import Tree, is_float
from splitjax.privacy.detector import Scrutinizer

VERDICT = ("gap", "hijacked", "blown_up")  # two flags: `add_metrics` keeps a true one


class Party:
    """What an owner does at a visit; the same code for both."""

    def __init__(self, split: Split, micro: int, watch: Scrutinizer | None = None):
        self.split, self.micro, self.watch = split, micro, watch
        self.label_up = split.cut.owners[-1] == "cloud"

    def trained(self, params: dict) -> dict:
        """Of parameters by segment those that are not frozen."""
        return {k: v for k, v in params.items() if int(k) >= self.split.frozen}

    def links(self, mine: dict) -> tuple:
        """The smooth parts, where `Split` looks for them."""
        numbers = range(len(self.split) - 1)
        return tuple({"smooth": mine[f"link/{i}/smooth"]} for i in numbers)

    def visit(self, visit, mine, live, batch, message, at, train=True):
        """Goes through one segment, forward or back (at the turn, both)."""
        turn = len(self.split) - 1
        index = visit if visit <= turn else 2 * turn - visit
        changes: dict = {}
        metrics: dict = {}
        if visit <= turn:
            live = dict(live)
            batch = {**batch, **(message or {})}
            live.setdefault("weight", batch.get("weight"))
            found = ids_of(batch["m"]) if index else batch.get("ids")
            if found is not None:
                live["ids"] = found  # whose rows these are, for the codecs
            out = self._forward(index, mine, live, batch, at, train, changes, metrics)
            if visit < turn or not train:
                return changes, live, out, metrics
            gradient = None
        else:
            name = f"link/{index}/{BACKWARD}"
            gradient, changes[name] = self.split.inlet(
                index, BACKWARD, message["g"], mine[name]
            )
            if self.watch and index == 0:
                rows = one_row_each(gradient, batch["target"]["y"])
                changes["watch"], seen = self.watch.update(mine["watch"], *rows)
                metrics |= {name: seen[name] for name in VERDICT}
        weight = live["weight"] if self.micro > 1 else 1.0
        own = mine["params"][str(index)]
        kept = live[f"residuals/{index}"]
        grads, gradient = self.split.pull(index, own, kept, gradient, weight)
        out = self._backward(index, mine, live, gradient, at, changes, metrics)
        grads = {**live.get("grads", {}), str(index): grads}
        live = {k: v for k, v in live.items() if not k.endswith(f"/{index}")}
        return changes, {**live, "grads": grads}, out, metrics

    def _forward(self, index, mine, live, batch, at, train, changes, metrics):
        m = batch["x"] if index == 0 else None
        if index > 0:
            name = f"link/{index - 1}/{FORWARD}"
            m, changes[name] = self.split.inlet(
                index - 1, FORWARD, batch["m"], mine[name]
            )
        made = self.split.forward(
            index,
            mine["params"][str(index)],
            mine[f"state/{index}"],
            m,
            links=self.links(mine),
            key=at.tick_key(),
            train=train,
            target=batch.get("target"),
        )
        live[f"residuals/{index}"] = made.residuals
        if index > 0:
            # Only what `gradient_of` reads of it: the counts of Sized leaves.
            live[f"arrived/{index}"] = m
        changes[f"state/{index}"] = made.state
        share = live["weight"] if train and self.micro > 1 else 1.0
        metrics |= {**made.metrics, "loss": made.loss * share}
        if index == len(self.split) - 1:
            return {"out": made.out}
        name = f"link/{index}/{FORWARD}"
        ctx = Context(at.tick_key(), None, train, at.tick, live.get("ids"))
        message, changes[name] = self.split.outlet(
            index, FORWARD, made.out, mine[name], ctx
        )
        new = newly_nonfinite(f"link_{index}/nonfinite", mine[name], changes[name])
        metrics |= add_metrics(metrics, new)
        out = {"m": message}
        if train and index == 0 and self.micro > 1:
            out["weight"] = batch["weight"]
        if train and index == len(self.split) - 2 and self.label_up:
            out["target"] = batch["target"]
        return out

    def _backward(self, index, mine, live, gradient, at, changes, metrics):
        if index <= self.split.frozen:
            return None
        name = f"link/{index - 1}/{BACKWARD}"
        ctx = Context(at.tick_key(), None, True, at.tick, live.get("ids"))
        g = gradient_of(gradient, live[f"arrived/{index}"])
        message, changes[name] = self.split.outlet(
            index - 1, BACKWARD, g, mine[name], ctx
        )
        counted = f"link_{index - 1}/backward_nonfinite"
        metrics |= newly_nonfinite(counted, mine[name], changes[name])
        return {"g": message}


def one_row_each(gradient: Tree, labels: Any) -> tuple[jax.Array, jax.Array]:
    """The floats of a message's gradient, (B, ...) in float32, and the labels (B,).

    Raises:
      ValueError: where examples have no rows of their own, or labels are no classes,
        one of each example.

    Example:
      >>> g = {"h": jnp.ones((2, 3)), "skip": jnp.ones((2, 1, 1)), "mask": None}
      >>> one_row_each(g, jnp.array([0, 1]))[0].shape
      (2, 4)
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"a scrutinizer compares gradients of classes; labels are {labels.dtype}"
        )
    if labels.ndim != 1:
        raise ValueError(
            f"a scrutinizer compares gradients of examples with one class each; labels "
            f"have the shape {labels.shape}, not (B,). Leave it out for such a task"
        )
    leaves = [a for a in jax.tree.leaves(gradient) if is_float(a)]
    count = len(labels)
    if any(not a.shape or a.shape[0] != count for a in leaves):
        raise ValueError(
            f"a scrutinizer compares gradients of examples, and in this message the "
            f"{count} examples have no row each: {[a.shape for a in leaves]}. Leave "
            "out ragged and c3"
        )
    rows = [a.astype(jnp.float32).reshape(count, -1) for a in leaves]
    return jnp.concatenate(rows, 1), labels


def predict(party: Party) -> tuple[tuple[Hop, ...], Callable]:
    """The forward visits; an output that the cloud made is sent down."""
    count = len(party.split)

    def forward(visit, mine, live, batch, message, at):
        _, _, out, metrics = party.visit(
            visit, mine, {}, batch, message, at, train=False
        )
        return {}, {}, out, metrics

    def edge_hop(visit):
        def edge(mine, live, batch, down, at):
            return forward(visit, mine, live, batch, down, at)[:3]

        return edge

    def cloud_hop(visit):
        return lanes(lambda mine, live, up, at: forward(visit, mine, live, {}, up, at))

    def last(mine, live, batch, down, at):
        if count % 2 == 0:
            return {}, down
        return {}, forward(count - 1, mine, live, batch, down, at)[2]

    hops = tuple(Hop(edge_hop(2 * k), cloud_hop(2 * k + 1)) for k in range(count // 2))
    return hops, last


def lanes(one: Callable) -> Callable:
    """Runs each lane by itself: here no slot sees another."""

    def cloud(shared, slots, live, ups, ats):
        done = [one(*lane) for lane in zip(slots, live, ups, ats, strict=True)]
        changes, live, downs, metrics = zip(*done, strict=True)
        return shared, changes, live, downs, metrics[0]

    return cloud
