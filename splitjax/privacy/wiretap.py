"""What crosses the links of a split, as whoever receives it sees it."""

from typing import NamedTuple

import jax

from splitjax.core.codec import Context, split_smooth
from splitjax.core.keys import fold
from splitjax.core.message import gradient_of, mask_of
from splitjax.core.split import BACKWARD, FORWARD, Split
from splitjax.core.tree import Tree, combine, split_floats


class Seen(NamedTuple):
    """What the receiver of each link decoded.

    Attributes:
      forward: activations by link, behind every codec.
      backward: gradients by link, of the activation (where a smooth codec made the
        message, pulled back through it); None where none is sent.
    """

    forward: tuple[Tree, ...]
    backward: tuple[Tree, ...]


def wiretap(
    split: Split,
    params: tuple,
    state: tuple,
    links: tuple,
    x: Tree,
    target: Tree = None,
    *,
    key: jax.Array,
) -> Seen:
    """Runs a split as in evaluation and keeps what arrives; nothing is learned.

    Args:
      split: the cut model with its links.
      params: by segment.
      state: by segment.
      links: the state of the links' ends, as `Split.init_links` gives it.
      x: the model's input.
      target: for the loss; without one no gradient flows.
      key: of what is random in the codecs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import Link, chain
      >>> from splitjax.core.cut import cut
      >>> from splitjax.core.stage import Stage
      >>> scale = lambda name: Stage(name,
      ...     init=lambda key, spec: ({"k": jnp.float32(2)}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x * p["k"], s, {}))
      >>> split = Split(cut([scale("a"), scale("b")], after="a"),
      ...     (Link(chain(), chain()),), lambda y, t: (((y - t) ** 2).sum(), {}))
      >>> x, key = jnp.ones(1), jax.random.key(0)
      >>> params, state = split.init(key, x)
      >>> links = split.init_links(params, state, x)
      >>> seen = wiretap(split, params, state, links, x, 0 * x, key=key)
      >>> float(seen.forward[0][0]), float(seen.backward[0][0])
      (2.0, 16.0)
    """
    ctx = Context(key, None, False, 0)
    visits, arrived, outputs, seen = [], [x], [], []
    for index in range(len(split)):
        m = arrived[-1]
        own = params[index], state[index]
        visit = split.forward(
            index, *own, m, links=links, key=key, train=False, target=target
        )
        visits.append(visit)
        if index == len(split) - 1:
            break
        # Of the output in front of the codecs only the smooth ones' slope is needed.
        decoded = m if index == 0 else seen[-1]
        segment = split.cut.segments[index]
        outputs.append(segment.apply(*own, decoded, key=key, train=False)[0])
        ends = links[index][FORWARD]
        message, _ = split.outlet(index, FORWARD, visit.out, ends["tx"], ctx)
        m, _ = split.inlet(index, FORWARD, message, ends["rx"])
        arrived.append(m)
        smooth, _ = split_smooth(split.links[index].forward)
        seen.append(smooth.decode(m, links[index]["smooth"])[0])
    backward: list[Tree] = [None] * (len(split) - 1)
    gradient: Tree = None
    for index in range(len(split) - 1, split.frozen, -1):
        if target is None:
            break
        _, gradient = split.pull(
            index, params[index], visits[index].residuals, gradient
        )
        link = index - 1
        ends = links[link][BACKWARD]
        gradient = gradient_of(gradient, arrived[index])
        message, _ = split.outlet(link, BACKWARD, gradient, ends["tx"], ctx)
        gradient, _ = split.inlet(link, BACKWARD, message, ends["rx"])
        backward[link] = _pulled(split, link, links, outputs[link], gradient, key)
    return Seen(tuple(seen), tuple(backward))


def _pulled(split, link, links, output, gradient, key):
    """The gradient of the activation, from that of its smooth message."""
    smooth, _ = split_smooth(split.links[link].forward)
    if smooth.name == "identity":
        return gradient
    floats, rest = split_floats(output)
    ctx = Context(fold(key, f"link_{link}"), mask_of(output), False)

    def encode(floats):
        full = combine(floats, rest)
        message, _ = smooth.encode(full, links[link]["smooth"], ctx)
        return split_floats(message)[0]

    _, pull = jax.vjp(encode, floats)
    return pull(split_floats(gradient)[0])[0]
