"""What a run is between two steps."""

from typing import NamedTuple

from splitjax.core.tree import Tree


class RunState(NamedTuple):
    """Everything that a run must keep to go on.

    Attributes:
      edge: what the edge holds.
      shared: what the cloud holds once.
      slot: what the cloud holds for the edge.
      step: optimizer steps done.
      tick: micro-batches done.
    """

    edge: dict
    shared: Tree
    slot: dict
    step: int = 0
    tick: int = 0
