"""Error feedback: what a message lost is added to the next one."""

import jax
import jax.numpy as jnp

from splitjax.codecs.finite import count, real, saturate, within, zero_unless
from splitjax.codecs.grid import HUGE
from splitjax.core.codec import Codec, is_noisy
from splitjax.core.message import is_sized
from splitjax.core.precision import widened
from splitjax.core.tree import Tree, combine, path_name, split_floats


def feedback(inner: Codec) -> Codec:
    """Adds the error of the last message to x before the inner codec encodes it.

    `a = x + memory`, the message is inner's of a, and `memory = a - x'` with x' what
    the receiver decodes. So the sum of all that arrived is the sum of all that was
    meant, but for the last error: what inner drops is late, not lost.

    That has a meaning where place i of one message and of the next are the same thing:
    the gradient of a parameter, an update in data-parallel training. Activations of
    other examples, or their gradients, are not: there the error of one example would
    be added to another. (Full batches in a fixed order are the exception.)

    What is not finite (magnitudes above 2^126 are not, either) is taken as zero and
    counted: it enters neither the message nor the memory. Where `ctx.mask` says
    padding, nothing is sent and the memory stays.

    Args:
      inner: any codec. One that is unbiased by scaling up what it sends, as
        `random_k(unbiased=True)`, makes the memory grow without end.

    Returns:
      A rough codec. Its state is `{"memory", "tx", "rx", "nonfinite"}`: the error, by
      leaf in float32 (float64 for float64), and inner's state at both ends: the sender
      keeps the receiver's too, to know what arrives.

    Raises:
      ValueError: for an inner codec with noise for privacy, which a memory would void;
        on use, for other shapes than those of the spec that the state was made for; at
        init, for `Sized` leaves, whose rows are other tokens each time.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.codecs.top_k import top_k
      >>> from splitjax.core.codec import Context
      >>> codec = feedback(top_k(1))
      >>> x = jnp.array([3.0, 2.0])
      >>> state, seen = codec.init(x), []
      >>> for _ in range(3):
      ...     message, state = codec.encode(x, state, Context())
      ...     seen.append(codec.decode(message, state)[0].tolist())
      >>> seen
      [[3.0, 0.0], [0.0, 4.0], [6.0, 0.0]]

    Reference:
      F. Seide et al., "1-Bit Stochastic Gradient Descent and its Application to
      Data-Parallel Distributed Training of Speech DNNs", Interspeech 2014.
      S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, "Error Feedback Fixes
      SignSGD and other Gradient Compression Schemes", 2019, arXiv:1901.09847.

    Differs:
      Gradients are fed in before the learning rate, so a change of the rate also
      changes the weight of what is late.
    """

    if is_noisy(inner):
        raise ValueError(
            f"feedback({inner.name}): with a memory an example would be in later "
            "messages too, and the noise of one would promise nothing. Leave one out"
        )

    def init(spec):
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), _floats(spec))
        return {
            "memory": jax.tree.map(widened, zeros),
            "tx": inner.init(spec),
            "rx": inner.init(spec),
            "nonfinite": jnp.int32(0),
        }

    def encode(x, state, ctx):
        floats = _floats(x)
        _check(floats, state["memory"])

        def add(a, memory):
            valid, bad = real(a.shape, ctx.mask), ~within(a, HUGE)
            bad = count(bad if valid is None else bad & valid)

            def sums(a):
                total = widened(a) + memory
                total = total if valid is None else zero_unless(valid, total)
                sent = saturate(total, a.dtype)
                return (sent,) if sent.dtype == total.dtype else (sent, total)

            def repaired(a):
                return sums(zero_unless(within(a, HUGE), a))

            # What a branch returns is a buffer. XLA would fuse the sum into all that
            # reads it, and take three times as long on a CPU.
            made = jax.lax.cond(bad == 0, sums, repaired, a)
            return made[-1], made[0], bad

        def lost(total, y, memory):
            left = total - widened(y)
            # What is too large to be sent at all is dropped here.
            left = zero_unless(within(left, HUGE) & within(total, HUGE), left)
            valid = real(y.shape, ctx.mask)
            return left if valid is None else jnp.where(valid, left, memory)

        leaves, treedef = jax.tree.flatten(floats)
        memories = jax.tree.leaves(state["memory"])
        made = [add(*pair) for pair in zip(leaves, memories, strict=True)]
        total, sent = (treedef.unflatten([m[i] for m in made]) for i in (0, 1))
        sent = combine(sent, split_floats(x)[1])
        message, tx = inner.encode(sent, state["tx"], ctx)
        y, rx = inner.decode(message, state["rx"])
        memory = jax.tree.map(lost, total, _floats(y), state["memory"])
        bads = sum((m[2] for m in made), start=state["nonfinite"])
        return message, {"memory": memory, "tx": tx, "rx": rx, "nonfinite": bads}

    def decode(message, state):
        y, rx = inner.decode(message, state["rx"])
        return y, {**state, "rx": rx}

    return Codec(init, encode, decode, name=f"feedback({inner.name})")


def _floats(tree: Tree) -> Tree:
    if any(map(is_sized, jax.tree.leaves(tree, is_leaf=is_sized))):
        raise ValueError(
            "feedback got an array of which only some rows cross (a Sized leaf, as "
            "ragged makes it): its rows are other tokens each time, so the error of "
            "the last message means nothing for this one. Use the inner codec alone"
        )
    return split_floats(tree)[0]


def _check(floats: Tree, memory: Tree) -> None:
    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path) or "x": list(a.shape) for path, a in leaves}

    got, made = shapes(floats), shapes(memory)
    if got != made:
        raise ValueError(
            f"feedback was made for leaves of the shapes {made} and got {got}: one "
            "state serves one shape. Make another with init(spec)"
        )
