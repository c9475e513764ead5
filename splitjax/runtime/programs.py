"""The compiled functions of an algorithm, and the schemas of what they exchange."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.algorithm import Algorithm, At
from splitjax.core.memory import memories
from splitjax.core.tree import Tree, combine, spec_of
from splitjax.optim.curvature import without_own
from splitjax.runtime.schema import Schema


class Exchange(NamedTuple):
    """The schemas of one hop; None where nothing is sent."""

    up: Schema | None
    down: Schema | None


class Programs:
    """The functions of an algorithm, each compiled once, by party, hop and use.

    Args:
      algorithm: the protocol.
      jit: False runs operation by operation, for debugging.

    The last function of a party in a step returns all that it holds, so it is given
    the party's arrays to reuse; in the other ticks those that are renewed.
    """

    def __init__(self, algorithm: Algorithm, *, jit: bool = True):
        self.algorithm = algorithm
        self._jit: Callable[..., Any] = jax.jit if jit else lambda f, **_: f
        self._compiled: dict = {}
        self._schemas: dict = {}
        self._exchanges: dict = {}

    def edge(self, hop: int, at: At) -> Callable:
        """The edge's function of a hop."""
        return self._function(("edge", hop, at.apply), self.hops(at)[hop].edge)

    def cloud(self, hop: int, at: At) -> Callable:
        """The cloud's function of a hop."""
        hops = self.hops(at)
        name, function = ("cloud", hop, at.apply), hops[hop].cloud
        if hop < len(hops) - 1:
            return self._function(name, function)
        return self._final(name, function, at, holder=1)

    def last(self, at: At) -> Callable | None:
        """The edge's function after the last hop, or None."""
        if self.algorithm.last is None:
            return None
        name = "last", at.apply
        return self._final(name, self.algorithm.last, at, holder=0)

    def hops(self, at: At) -> tuple:
        """The hops of a tick."""
        return self.algorithm.hops(at.apply)

    def predict_edge(self, hop: int) -> Callable:
        """The edge's function of a hop of a forward pass."""
        return self._function(("predict edge", hop), self._predict[0][hop].edge)

    def predict_cloud(self, hop: int) -> Callable:
        """The cloud's function of a hop of a forward pass."""
        return self._function(("predict cloud", hop), self._predict[0][hop].cloud)

    def predict_last(self) -> Callable:
        """The edge's function that gives the output of a forward pass."""
        return self._function("predict last", self._predict[1])

    def predict_hops(self) -> int:
        """How many hops a forward pass has."""
        return len(self._predict[0])

    def exchanges(
        self, edge: Tree, shared: Tree, slot: Tree, batch: Tree, at: At
    ) -> tuple[Exchange, ...]:
        """The schemas of every hop of a tick, from specs; nothing is run.

        Both ends ask their own programs, so no schema is taken from the network.

        Args:
          edge: what the edge holds (arrays or specs), as the rest.
          shared: what the cloud holds once.
          slot: what the cloud holds for the edge.
          batch: of the tick.
          at: of any tick with the same `apply`.
        """
        hops, last = self.hops(at), None
        place = ("train", at.apply, place_of(spec_of(batch)))
        edge, slot = self.remembered(edge, shared, slot, batch)
        return self._walk(place, hops, last, (edge, shared, slot), batch, at)

    def predictions(
        self, edge: Tree, shared: Tree, slot: Tree, x: Tree, at: At
    ) -> tuple[Exchange, ...]:
        """As `exchanges`, of a forward pass for an input."""
        hops, last = self._predict
        place = ("predict", False, place_of(spec_of(x)))
        return self._walk(place, hops, last, (edge, shared, slot), {"x": x}, at)

    def remembered(
        self, edge: Tree, shared: Tree, slot: Tree, batch: Tree
    ) -> tuple[Tree, Tree]:
        """Specs of what edge and slot hold with the memories of a batch filled in."""
        held = spec_of((edge, shared, slot))
        if not memories((held[0], held[2])):
            return held[0], held[2]
        assert self.algorithm.remember is not None, "who has memories, can fill them in"
        x = spec_of(batch["x"])
        place = "remembered", place_of(x)
        if place not in self._exchanges:
            found = jax.eval_shape(self.algorithm.remember, *held, x)
            self._exchanges[place] = found
        return self._exchanges[place]

    def schema(self, tree: Tree) -> Schema | None:
        """The schema of a message (arrays or specs); None for an empty one."""
        if not jax.tree.leaves(tree):
            return None
        place = place_of(spec_of(tree))
        if place not in self._schemas:
            self._schemas[place] = Schema.of(tree)
        return self._schemas[place]

    @property
    def _predict(self) -> tuple:
        if self.algorithm.predict is None:
            raise ValueError("this algorithm has no forward pass of its own")
        return self.algorithm.predict

    def _function(self, name, function, *, donate=None):
        if name not in self._compiled:
            numbers = () if donate is None else (donate,)
            self._compiled[name] = self._jit(function, donate_argnums=numbers)
        return self._compiled[name]

    def _final(self, name, function, at, *, holder):
        """A party's last function of a tick; argument `holder` is what it holds."""
        if at.apply:
            return self._function(name, function, donate=holder)
        renewed = self.algorithm.renewed

        def run(old, *args):
            joined = _each(lambda rest, old: {**rest, **old}, args[holder], old)
            return function(*args[:holder], joined, *args[holder + 1 :])

        compiled = self._function(name, run, donate=0)

        def call(*args):
            held = args[holder]
            old = _each(lambda d: {k: d[k] for k in renewed}, held)
            rest = _each(lambda d: {k: d[k] for k in d if k not in renewed}, held)
            return compiled(old, *args[:holder], rest, *args[holder + 1 :])

        return call

    def _walk(self, place, hops, last, held, batch, at):
        if place in self._exchanges:
            return self._exchanges[place]
        edge, shared, slot = held
        live: Tree = {}
        cloud_live: Tree = {}
        down: Tree = None
        found = []
        for hop in hops:
            _, live, up = jax.eval_shape(hop.edge, edge, live, batch, down, at)
            _, _, (cloud_live,), (down,), _ = jax.eval_shape(
                hop.cloud, shared, (slot,), (cloud_live,), (up,), (at,)
            )
            found.append((up, down))
        # Only now: of shapes that fail on the way nothing is remembered.
        schemas = [Exchange(self.schema(up), self.schema(down)) for up, down in found]
        self._exchanges[place] = tuple(schemas)
        return self._exchanges[place]


def _each(function: Callable, held: Any, *more: Any) -> Any:
    """Applies it to what an edge holds, or to what each lane's slot does."""
    if isinstance(held, dict):
        return function(held, *more)
    return tuple(function(*lane) for lane in zip(held, *more, strict=True))


def place_of(spec: Tree) -> tuple:
    """A key for a tree of specs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> spec = {"h": jax.ShapeDtypeStruct((2,), jnp.float32)}
      >>> place_of(spec) == place_of(dict(spec))
      True
    """
    leaves, treedef = jax.tree.flatten(spec)
    return treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def at_tick(key: jax.Array, tick: int, *, slot: int, micro: int) -> At:
    """The place in a run of a tick, where every step has `micro` ticks.

    Example:
      >>> at = at_tick(jax.random.key(0), 5, slot=0, micro=3)
      >>> int(at.step), at.apply
      (1, True)
    """
    numbers = np.int32(tick // micro), np.int32(tick), np.int32(slot)
    return At(key, *numbers, apply=(tick + 1) % micro == 0)


def weights_of(owner: str, owners: Sequence[str], params: tuple, state: tuple) -> Tree:
    """The parameters and state of the segments that an owner holds, by number.

    K-FAC's taps are left out: they are zeros, and larger than what they are beside.

    Example:
      >>> weights_of("edge", ("edge", "cloud"), (1, 2), (3, 4))
      {'params': {'0': 1}, 'state': {'0': 3}}
    """
    mine = [i for i, other in enumerate(owners) if other == owner]
    return {
        "params": {str(i): without_own(params[i]) for i in mine},
        "state": {str(i): state[i] for i in mine},
    }


def begin(
    algorithm: Algorithm,
    weights: Tree,
    params: tuple,
    state: tuple,
    x: Tree,
) -> Tree:
    """What the edge holds at first, from its own weights and specs of the others'.

    Args:
      algorithm: the protocol.
      weights: the edge's; see `weights_of`.
      params: of all segments, arrays or specs.
      state: likewise.
      x: the model's input, or its spec.
    """

    def run(weights):
        def fill(given, whole):
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), whole)
            return tuple(
                combine(given[str(i)], part) if str(i) in given else part
                for i, part in enumerate(zeros)
            )

        # Of the zeros, taps stay; else they are the other party's, and compiled away.
        whole = fill(weights["params"], params), fill(weights["state"], state)
        return algorithm.init(*whole, x)[0]

    return jax.jit(run)(weights)
