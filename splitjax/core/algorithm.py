"""An algorithm: one training protocol as a schedule of hops between edges and cloud."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from splitjax.core.keys import fold
from splitjax.core.tree import Tree

NONFINITE = "nonfinite"  # how the names of such counts end


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class At:
    """Where in a run a hop happens.

    Attributes:
      key: the run's typed PRNG key.
      step: optimizer steps done so far.
      tick: micro-batches done so far.
      slot: the edge's slot.
      apply: whether this tick is the last of its step (static: it chooses the program).

    Example:
      >>> import jax
      >>> At(jax.random.key(0), 0, 0, 0).apply
      True
    """

    key: Any
    step: Any
    tick: Any
    slot: Any
    apply: bool = dataclasses.field(default=True, metadata={"static": True})

    def tick_key(self) -> jax.Array:
        """The key of this slot and tick; stages fold their names into it."""
        return fold(self.key, self.slot, self.tick)


class Hop(NamedTuple):
    """One exchange: up from the edges, down from the cloud.

    Attributes:
      edge: `(edge, live, batch, down, at) -> (changes, live, up)`.
      cloud: `(shared, slots, live, ups, ats) -> (shared, changes, live, downs,
        metrics)`, where slots, live, ups, ats, changes and downs are tuples over the
        lanes of this tick, and metrics is a dict.

    `edge` and each slot are flat dicts; `changes` holds the entries that are new, so
    that the hops of several ticks in flight never undo each other. The function that
    has the optimizer step returns every entry. `live` holds this tick's residuals and
    nothing that outlives it.
    """

    edge: Callable[..., tuple[dict, dict, Tree]]
    cloud: Callable[..., tuple[Tree, tuple, tuple, tuple, dict]]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One training protocol, run unchanged in one process or in many.

    Attributes:
      init: `(params, state, x) -> (edge, shared, slot)`: what one edge holds, what the
        cloud holds once, and what it holds for that edge.
      hops: `apply -> hops` of a tick; the schedule may be longer where a step ends.
      last: `(edge, live, batch, down, at) -> (changes, metrics)` after the last hop,
        or None: nothing comes back and nobody waits.
      predict: the hops of a forward pass, whose `last` gives the model's output.
      merge: `(edge, shared, slot) -> (params, state)` of the whole model.
      once: whether the first message of a tick depends on its batch alone, so that who
        has kept it need not be sent it again.
      renewed: entries that a party's last function of every tick gives anew, so that
        their old arrays may be used for the new ones.
      remember: `(edge, shared, slot, x) -> (edge, slot)`: the same with every `Memory`
        that `init` gave blank as it is for a batch with the input x; for specs alone.
        The driver keeps what they hold, and gives a batch its "ids". None: there are
        no memories.

    Example: see `splitjax.algorithms.split`.
    """

    init: Callable[..., tuple[dict, Tree, dict]]
    hops: Callable[[bool], tuple[Hop, ...]]
    last: Callable[..., tuple[dict, dict]] | None
    predict: tuple[tuple[Hop, ...], Callable] | None = None
    merge: Callable[..., tuple[Tree, Tree]] | None = None
    once: bool = False
    renewed: tuple[str, ...] = ()
    remember: Callable[..., tuple[dict, dict]] | None = None


def without_zero_counts(metrics: dict) -> dict:
    """Metrics as they are sent and logged: a count of none would be in every step.

    Example:
      >>> without_zero_counts({"loss": 0.0, "link_0/nonfinite": 0})
      {'loss': 0.0}
    """
    return {
        name: value
        for name, value in metrics.items()
        if not name.endswith(NONFINITE) or value
    }


def add_metrics(first: dict, second: dict) -> dict:
    """Joins the metrics of two parties, hops or ticks: losses and counts add up.

    A count is of values that were not finite. A flag (a bool) that both have is true
    where either is, so that what one tick of a step found is not lost in the next. Of
    any other metric the second is kept.

    Example:
      >>> add_metrics({"loss": 1.0}, {"loss": 2.0, "norm": 3.0})
      {'loss': 3.0, 'norm': 3.0}
      >>> add_metrics({"blown_up": True}, {"blown_up": False})
      {'blown_up': True}
      >>> add_metrics({"link_0/nonfinite": 1}, {"link_0/nonfinite": 2})
      {'link_0/nonfinite': 3}
    """
    joined = {**first, **second}
    for name in first.keys() & second.keys():
        if name == "loss" or name.endswith(NONFINITE):
            joined[name] = first[name] + second[name]
        elif _is_flag(first[name]) and _is_flag(second[name]):
            joined[name] = first[name] | second[name]
    return joined


def _is_flag(value: Any) -> bool:
    return jnp.result_type(value) == jnp.bool_
