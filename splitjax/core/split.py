"""The split: the one place where the chain rule is broken by hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.codec import (
    Codec,
    Context,
    Link,
    message_spec,
    nonfinite,
    split_smooth,
)
from splitjax.core.cut import Cut, joined_metrics
from splitjax.core.gradient import with_zeros
from splitjax.core.keys import fold
from splitjax.core.message import gradient_of, mask_of
from splitjax.core.residuals import Residuals, Visit, restore, strip
from splitjax.core.tree import Tree, combine, flat, split_floats

Loss = Callable[[Tree, Tree], tuple[jax.Array, dict]]
FORWARD, BACKWARD = "forward", "backward"


@dataclasses.dataclass(frozen=True)
class Split:
    """A cut model with a link at each cut and a loss at its end.

    Attributes:
      cut: the segments.
      links: one for each cut.
      loss: `(y, target) -> (scalar, metrics)`: the mean over the valid rows.
      frozen: how many of the first segments are not trained: no gradient is sent to
        them, and they run as in evaluation, without dropout.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.stage import Stage
      >>> from splitjax.core.codec import chain
      >>> from splitjax.core.cut import cut
      >>> scale = lambda name: Stage(name,
      ...     init=lambda key, spec: ({"k": jnp.float32(2)}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x * p["k"], s, {}))
      >>> split = Split(cut([scale("a"), scale("b")], after="a"),
      ...     (Link(chain(), chain()),), lambda y, t: (jnp.mean((y - t) ** 2), {}))
      >>> x = jnp.ones(4)
      >>> params, state = split.init(jax.random.key(0), x)
      >>> links = split.init_links(params, state, x)
      >>> (loss, _), grads = split.value_and_grad(params, state, links, x, 0 * x)
      >>> float(loss), [float(leaf) for leaf in jax.tree.leaves(grads)]
      (16.0, [16.0, 16.0])
    """

    cut: Cut
    links: tuple[Link, ...]
    loss: Loss
    frozen: int = 0

    def __post_init__(self):
        """Checks that links and cuts agree."""
        if len(self.links) != len(self.cut.segments) - 1:
            raise ValueError(
                f"{len(self.cut.segments)} segments have "
                f"{len(self.cut.segments) - 1} cuts, but there are {len(self.links)} "
                "links"
            )
        if not 0 <= self.frozen < len(self.cut.segments):
            raise ValueError(
                f"frozen={self.frozen}: at most {len(self.cut.segments) - 1} segments "
                "can be frozen"
            )

    def __len__(self) -> int:
        """The number of segments."""
        return len(self.cut.segments)

    def codec(self, link: int, direction: str) -> Codec:
        """The rough codec of a link: what `outlet` and `inlet` apply."""
        if direction == FORWARD:
            return split_smooth(self.links[link].forward)[1]
        return self.links[link].backward

    def init(self, key: jax.Array, x: Tree) -> tuple[tuple, tuple]:
        """Parameters and state by segment, for an input (arrays or specs)."""
        params, state = self.cut.model.init(key, x)
        return self.cut.partition(params), self.cut.partition(state)

    def init_links(self, params: tuple, state: tuple, x: Tree) -> tuple[dict, ...]:
        """The state of both ends of every link, for an input (arrays or specs).

        Returns:
          For each link `{"smooth", "forward": {"tx", "rx"}, "backward": {"tx", "rx"}}`.
          The smooth part is constant; each end keeps its own rough part.
        """
        ends = []
        for number, link in enumerate(self.links):
            smooth, _ = split_smooth(link.forward)

            def arrive(params, state, m, number=number, ends=tuple(ends)):
                segment = self.cut.segments[number]
                y, _, _ = segment.apply(
                    params, state, self._decode(number, m, ends), key=None, train=False
                )
                return y

            spec = jax.eval_shape(arrive, params[number], state[number], x)
            constant = smooth.init(spec)
            x = message_spec(smooth, spec)
            gradient = gradient_of(split_floats(x)[0], x)
            made = {"smooth": constant}
            for direction, spec in ((FORWARD, x), (BACKWARD, gradient)):
                codec = self.codec(number, direction)
                made[direction] = {end: codec.init(spec) for end in ("tx", "rx")}
            ends.append(made)
        return tuple(ends)

    def _decode(self, index: int, m: Tree, links: tuple) -> Tree:
        if index == 0:
            return m
        smooth, _ = split_smooth(self.links[index - 1].forward)
        return smooth.decode(m, links[index - 1]["smooth"])[0]

    def forward(
        self,
        index: int,
        params: Tree,
        state: Tree,
        m: Tree,
        *,
        links: tuple,
        key: jax.Array | None,
        train: bool = True,
        target: Tree = None,
    ) -> Visit:
        """Runs one segment from the message that arrived to the one that leaves.

        Args:
          index: the segment's number.
          params: its parameters.
          state: its state.
          m: what `inlet` gave; the model's input at the first segment.
          links: the state of the links (only the smooth parts are read).
          key: a typed key of this tick; stages fold their names into it.
          train: whether dropout and the like are on.
          target: for the loss, at the last segment; None skips it.
        """
        (floats, rest), (trained, codes) = split_floats(m), split_floats(params)
        last = index == len(self) - 1
        train = train and index >= self.frozen

        def run(trained, floats):
            x = self._decode(index, combine(floats, rest), links)
            y, new_state, aux = self.cut.segments[index].apply(
                combine(trained, codes), state, x, key=key, train=train
            )
            loss = aux.pop("loss", jnp.float32(0))
            metrics = flat(aux)
            if last:
                if target is not None:
                    value, own = self.loss(y, target)
                    loss, metrics = loss + value, {**metrics, **own}
                return loss, ((), y, loss, new_state, metrics)
            smooth, _ = split_smooth(self.links[index].forward)
            ctx = Context(fold(key, f"link_{index}"), mask_of(y), train)
            out, sent = smooth.encode(y, links[index]["smooth"], ctx)
            if jax.tree.leaves(sent):  # constant, but for a count: a metric
                metrics = {**metrics, f"link_{index}/nonfinite": nonfinite(sent)}
            out, others = split_floats(out)
            return (out, loss), (others, (), loss, new_state, metrics)

        # The raw input takes no gradient; frozen segments take none at all.
        if index < self.frozen:
            out, aux = run(trained, floats)
            pull = ()
        elif index == self.frozen:
            out, pull, aux = jax.vjp(lambda p: run(p, floats), trained, has_aux=True)
        else:
            out, pull, aux = jax.vjp(run, trained, floats, has_aux=True)
        others, y, loss, new_state, metrics = aux
        if not last:
            y = combine(out[0], others)
        return Visit(y, loss, strip(pull, params), new_state, metrics)

    def pull(
        self,
        index: int,
        params: Tree,
        residuals: Residuals,
        gradient: Tree,
        weight: jax.Array | float = 1.0,
    ) -> tuple[Tree, Tree]:
        """Pulls a gradient back through one segment.

        Args:
          index: the segment's number, not a frozen one.
          params: the parameters of the forward pass.
          residuals: of that pass.
          gradient: of the message that left, already weighted; ignored at the last
            segment, whose seed is the weight.
          weight: of this micro-batch in its step.

        Returns:
          The gradient of the parameters (`with_zeros`), and of the message that arrived
          (floats only, None elsewhere; () at the first segment that is trained).
        """
        seed = jnp.float32(weight)
        if index < len(self) - 1:
            seed = (split_floats(gradient)[0], seed)
        grads, *arrived = restore(residuals, params)(seed)
        return with_zeros(grads, params), arrived[0] if arrived else ()

    def outlet(
        self, link: int, direction: str, m: Tree, end: Tree, ctx: Context
    ) -> tuple[Tree, Tree]:
        """Encodes what leaves: a smooth message forward, its gradient backward.

        Args:
          link: the link's number.
          direction: "forward" or "backward".
          m: the smooth message; backward `gradient_of` it.
          end: the codec state of the sender.
          ctx: see `Context`; its key is folded with the link and the direction.
        """
        ctx = ctx._replace(key=fold(ctx.key, f"link_{link}", direction))
        return self.codec(link, direction).encode(m, end, ctx)

    def inlet(
        self, link: int, direction: str, message: Tree, end: Tree
    ) -> tuple[Tree, Tree]:
        """Decodes what arrived; `end` is the codec state of the receiver."""
        return self.codec(link, direction).decode(message, end)

    def value_and_grad(
        self,
        params: tuple,
        state: tuple,
        links: tuple,
        x: Tree,
        target: Tree,
        *,
        key: jax.Array | None = None,
        train: bool = True,
        tick: int = 0,
        ids: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, dict], tuple]:
        """Loss and gradient through every codec, all segments in one program.

        Args:
          params: by segment.
          state: by segment.
          links: from `init_links`.
          x: the model's input.
          target: for the loss.
          key: of this tick.
          train: whether dropout and the like are on; see `Context`, as the rest.

        Returns:
          `((loss, {"state", "links", "metrics", "out"}), gradients by segment)`;
          gradients of frozen segments are None.
        """
        ends = list(links)
        visits, arrived, m = [], [], x
        ctx = Context(key, None, train, tick, ids)

        def cross(link, direction, m):
            both = ends[link][direction]
            message, tx = self.outlet(link, direction, m, both["tx"], ctx)
            m, rx = self.inlet(link, direction, message, both["rx"])
            ends[link] = {**ends[link], direction: {"tx": tx, "rx": rx}}
            return m

        for index in range(len(self)):
            arrived.append(m)
            how = {"links": tuple(ends), "key": key, "train": train, "target": target}
            visit = self.forward(index, params[index], state[index], m, **how)
            visits.append(visit)
            if index < len(self) - 1:
                m = cross(index, FORWARD, visit.out)
        gradient: Tree = None
        grads: list[Tree] = [None] * len(self)
        for index in reversed(range(self.frozen, len(self))):
            grads[index], gradient = self.pull(
                index, params[index], visits[index].residuals, gradient
            )
            if index > self.frozen:
                gradient = cross(
                    index - 1, BACKWARD, gradient_of(gradient, arrived[index])
                )
        loss = sum((visit.loss for visit in visits), start=jnp.float32(0))
        extra: dict[str, Any] = {
            "state": tuple(visit.state for visit in visits),
            "links": tuple(ends),
            "metrics": joined_metrics(visit.metrics for visit in visits),
            "out": visits[-1].out,
        }
        return (loss, extra), tuple(grads)
