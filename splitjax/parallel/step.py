"""One step of a pipeline of many programs: what each stage runs, and what it holds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.codec import chain
from splitjax.core.cut import joined_metrics
from splitjax.core.keys import fold
from splitjax.core.split import Split
from splitjax.core.tree import Tree
from splitjax.parallel.schedule import BACKWARD, FORWARD, RECOMPUTE, WAIT, Op


def programs(split: Split, own: Sequence[int], again: Sequence[bool]) -> dict[str, Any]:
    """The jitted programs of a stage: "F", "R" and "B".

    Args:
      split: all segments.
      own: the numbers of the stage's segments, of which only the first may be computed
        again.
      again: whether each segment of the model is.

    Example:
      >>> from splitjax.core.cut import cut
      >>> split = Split(cut([]), (), lambda y, t: (y, {}))
      >>> sorted(programs(split, (0,), (False,)))
      ['B', 'F', 'R']
    """
    links = ({"smooth": chain().init(None)},) * (len(split) - 1)

    def visit(at, params, state, m, target, key, micro, train):
        how = {"links": links, "key": fold(key, micro), "train": train}
        return split.forward(own[at], params, state, m, target=target, **how)

    def forward(params, state, x, target, key, micro, train):
        kept, new, metrics, loss, m = [], [], [], jnp.float32(0), x
        for at, index in enumerate(own):
            seen = visit(at, params[at], state[at], m, target, key, micro, train)
            kept.append(None if again[index] else seen.residuals)
            new.append(seen.state)
            loss, m = loss + seen.loss, seen.out
            metrics.append(seen.metrics)
        # The model's output ends in the loss: logits of every micro-batch are much.
        sent = () if own[-1] == len(split) - 1 else m
        told = {"loss": loss, "metrics": joined_metrics(metrics)}
        return sent, tuple(kept), tuple(new), told

    def recompute(params, state, x, target, key, micro, train):
        # Its new state is dropped: the first forward pass has counted this batch.
        seen = visit(0, params[0], state[0], x, target, key, micro, train)
        return seen.residuals

    def backward(params, kept, gradient, weight, total):
        grads: list[Tree] = [None] * len(own)
        for at in reversed(range(len(own))):
            grads[at], gradient = split.pull(
                own[at], params[at], kept[at], gradient, weight
            )
        return jax.tree.map(jnp.add, total, tuple(grads)), gradient

    return {
        FORWARD: jax.jit(forward, static_argnames="train"),
        RECOMPUTE: jax.jit(recompute, static_argnames="train"),
        BACKWARD: jax.jit(backward, donate_argnums=4),
    }


@dataclasses.dataclass
class Held:
    """What a stage holds of one micro-batch between its forward and backward pass.

    Attributes:
      state: of the stage, before this micro-batch.
      kept: by segment what its vjp keeps; None until it is computed again.
      x: the stage's input, where it is needed once more.
      target: likewise.
      gradient: of the stage's output, once it has come.
    """

    state: tuple
    kept: tuple
    x: Tree = None
    target: Tree = None
    gradient: Tree = None


class Step:
    """The arrays of one step while it runs; see `mpmd.Pipeline.value_and_grad`."""

    def __init__(self, pipe: Any, params, state, batches, key, train, weights):
        self.pipe, self.batches, self.train = pipe, batches, train
        self.weights = np.asarray(weights, np.float32)
        self.owner = pipe.owners()
        self.params, self.state, self.totals, self.keys = [], [], [], []
        for place, own in zip(pipe.places, pipe.parts, strict=True):
            lent = [
                {n: place.params(params[self.owner[n]][n]) for n in pipe.lent[index]}
                for index in own
            ]
            mine = tuple(params[i] | more for i, more in zip(own, lent, strict=True))
            self.params.append(mine)
            rest = tuple(
                state[i] | {n: {} for n in more}
                for i, more in zip(own, lent, strict=True)
            )
            self.state.append(rest)
            self.totals.append(jax.tree.map(_zeros, mine))
            self.keys.append(None if key is None else place.whole(key))
        stages = range(len(pipe.parts))
        self.held: list[dict[int, Held]] = [{} for _ in stages]
        self.most = [0 for _ in stages]
        self.seen: list[list[dict]] = [[] for _ in stages]
        self.done: list[list[Op]] = [[] for _ in stages]
        self.outs: dict[tuple[int, int], Tree] = {}
        self.gradients: dict[tuple[int, int], Tree] = {}

    def do(self, stage: int, op: Op) -> None:
        """Starts one operation; its inputs have been started before."""
        run = {
            FORWARD: self._forward,
            RECOMPUTE: self._recompute,
            WAIT: self._wait,
            BACKWARD: self._backward,
        }
        run[op.kind](stage, op.micro)
        self.done[stage].append(op)

    def block(self) -> None:
        """Waits until all that was started is done."""
        held = [vars(one) for each in self.held for one in each.values()]
        rest = (self.outs, self.gradients, self.totals, self.state, self.seen)
        jax.block_until_ready((held, rest))

    def _forward(self, stage: int, micro: int) -> None:
        place, last = self.pipe.places[stage], stage == len(self.pipe.parts) - 1
        came = self.outs.pop((stage - 1, micro)) if stage else self.batches[micro][0]
        x = place.rows(came)
        target = place.rows(self.batches[micro][1]) if last else None
        held = Held(self.state[stage], ())
        out, held.kept, self.state[stage], seen = self._run(
            FORWARD, stage, micro, held, x, target
        )
        if held.kept[0] is None:
            held.x, held.target = x, target
        self.held[stage][micro] = held
        self.most[stage] = max(self.most[stage], len(self.held[stage]))
        self.seen[stage].append(seen)
        if not last:
            self.outs[stage, micro] = out

    def _recompute(self, stage: int, micro: int) -> None:
        held = self.held[stage][micro]
        fresh = self._run(RECOMPUTE, stage, micro, held, held.x, held.target)
        held.kept = (fresh, *held.kept[1:])
        held.x = held.target = None

    def _run(self, kind: str, stage: int, micro: int, held: Held, x, target) -> Any:
        return self.pipe.programs[stage][kind](
            self.params[stage],
            held.state,
            x,
            target,
            self.keys[stage],
            np.int32(micro),
            train=self.train,
        )

    def _wait(self, stage: int, micro: int) -> None:
        came = self.gradients.pop((stage + 1, micro))
        self.held[stage][micro].gradient = self.pipe.places[stage].rows(came)

    def _backward(self, stage: int, micro: int) -> None:
        held = self.held[stage].pop(micro)
        total, back = self.pipe.programs[stage][BACKWARD](
            self.params[stage],
            held.kept,
            held.gradient,
            self.weights[micro],
            self.totals[stage],
        )
        self.totals[stage] = total
        if stage:
            self.gradients[stage, micro] = back

    def result(self) -> tuple[tuple[jax.Array, dict], tuple]:
        """What `value_and_grad` returns, once all has been done."""
        pipe = self.pipe
        ends = pipe.places[-1]
        seen = [_mean(each, self.weights) for each in self.seen]
        losses = [ends.whole(each["loss"]) for each in seen]
        loss = sum(losses[1:], start=losses[0])
        grads, state = self._by_segment()
        finite = [
            ends.whole(_finite(each["loss"], [grads[index] for index in own]))
            for each, own in zip(seen, pipe.parts, strict=True)
        ]
        alright = jnp.stack(finite).all()
        extra = {
            "state": tuple(state),
            "metrics": joined_metrics(ends.whole(each["metrics"]) for each in seen),
            "finite": tuple(place.whole(alright) for place in pipe.places),
            "done": tuple(map(tuple, self.done)),
            "in_flight": tuple(self.most),
        }
        return (loss, extra), tuple(grads)

    def _by_segment(self) -> tuple[list[dict], list[dict]]:
        """Gradients and state, with what was lent given back to its owner."""
        grads, state = [{} for _ in self.pipe.lent], [{} for _ in self.pipe.lent]
        for own, total, kept in zip(
            self.pipe.parts, self.totals, self.state, strict=True
        ):
            for index, g, s in zip(own, total, kept, strict=True):
                lent = self.pipe.lent[index]
                grads[index] |= {n: leaf for n, leaf in g.items() if n not in lent}
                state[index] = {n: leaf for n, leaf in s.items() if n not in lent}
        for own, total in zip(self.pipe.parts, self.totals, strict=True):
            for index, g in zip(own, total, strict=True):
                for name in self.pipe.lent[index]:
                    home = grads[self.owner[name]]
                    moved = jax.tree.map(
                        lambda a, b: jax.device_put(a, b.sharding), g[name], home[name]
                    )
                    home[name] = jax.tree.map(jnp.add, home[name], moved)
        return grads, state


def _zeros(leaf: jax.Array) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)


@jax.jit
def _mean(trees: list[Tree], weights: jax.Array) -> Tree:
    """The weighted sum over micro-batches of each leaf, float32."""

    def one(*leaves):
        seen = jnp.stack(leaves).astype(jnp.float32)
        return (weights.reshape(-1, *(1,) * (seen.ndim - 1)) * seen).sum(0)

    return jax.tree.map(one, *trees)


@jax.jit
def _finite(loss: jax.Array, grads: Tree) -> jax.Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads))]
    return jnp.stack(leaves).all()
