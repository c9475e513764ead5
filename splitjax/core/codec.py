"""A codec: what crosses a link instead of an array, and the way back from it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from splitjax.core.mechanism import Mechanism
from splitjax.core.message import tree_bytes
from splitjax.core.tree import Tree, path_name


class Context(NamedTuple):
    """What an encoder may know besides its input.

    Attributes:
      key: a typed PRNG key, or None.
      mask: bool, the shape of the leaves' leading axes; False marks padding.
      train: whether this is a training step (static: it chooses the program).
      tick: the number of the micro-batch.
      ids: int32 `[B]`, which example each row is, or one for all; -1 is nobody.
    """

    key: jax.Array | None = None
    mask: jax.Array | None = None
    train: bool = True
    tick: int | jax.Array = 0
    ids: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Codec:
    """One direction of one link, as pure functions.

    Attributes:
      init: `(spec) -> state`: arrays only. Each end holds its own copy.
      encode: `(x, state, ctx) -> (message, state)`, on the sender.
      decode: `(message, state) -> (x, state)`, on the receiver; it reads the message
        and its own state, nothing else.
      smooth: whether encode and decode are differentiable. The split makes smooth ones
        part of the two segments, so that the gradient which travels back is the
        gradient of the message; the gradient passes straight through the others.
      name: as it is printed and agreed between the ends.
      parts: the codecs of a chain.
      entries: by key of a dict, the codecs of an `on_tree`.
      mechanism: the noise that it adds to every float, as an accountant reads it.
      mixes: how many rows of the leading axis one row of the message depends on; None:
        on all of them.
      exact: whether unlike devices decode equal numbers, to the bit: each is a product
        that is exact, rounded once at most. Both ends of a memory may sum those up.
    """

    init: Callable[[Tree], Tree]
    encode: Callable[[Tree, Tree, Context], tuple[Tree, Tree]]
    decode: Callable[[Tree, Tree], tuple[Tree, Tree]]
    smooth: bool = False
    name: str = "codec"
    parts: tuple["Codec", ...] = ()
    entries: dict[str, "Codec"] = dataclasses.field(default_factory=dict, hash=False)
    mechanism: Mechanism | None = None
    mixes: int | None = 1
    exact: bool = False


class Link(NamedTuple):
    """The two codecs of one cut, named by the direction of the data through the model.

    Attributes:
      forward: for activations.
      backward: for gradients; it sees the gradient of the forward codec's (smooth)
        message, without its integer leaves.
    """

    forward: Codec
    backward: Codec


def message_spec(codec: Codec, spec: Tree) -> Tree:
    """The message that a codec makes of an input's spec, as specs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> message_spec(chain(), jax.ShapeDtypeStruct((2,), jnp.float32)).shape
      (2,)
    """

    def run(x):
        ctx = Context(jax.random.key(0), ids=jnp.int32(-1))
        return codec.encode(x, codec.init(spec), ctx)[0]

    return jax.eval_shape(run, spec)


def chain(*codecs: Codec) -> Codec:
    """Applies codecs one after the other: each encodes the message of the last.

    Args:
      *codecs: the smooth ones first. None at all sends everything as it is.

    Raises:
      ValueError: when a smooth codec follows a rough one: the gradient could not pass
        through the rough one to the part of the model that the smooth one belongs to;
        when noise for privacy follows a rough codec that adds none: it would not reach
        all that crosses.

    Example:
      >>> chain().name
      'identity'
    """
    flat = tuple(part for codec in codecs for part in (codec.parts or (codec,)))
    flat = tuple(part for part in flat if part.name != "identity")
    rough = [part.name for part in flat if not part.smooth]
    for before, after in zip(flat, flat[1:], strict=False):
        if after.smooth and not before.smooth:
            raise ValueError(
                f"codec {after.name!r} is smooth and stands after {before.name!r}, "
                "which is rough: a gradient cannot pass through a rough codec. Put the "
                "smooth ones first."
            )
        if _is_late(before, after):
            raise ValueError(
                f"codec {after.name!r} adds noise and stands after {before.name!r}, "
                "which has made a message of the floats already: its whole numbers "
                "would cross without noise, and its scales be noise. Put the noise "
                "first, as in sign() + randomize(2.0) + pack_signs()."
            )
    if len(flat) == 1:
        return flat[0]

    def init(spec):
        states = []
        for part in flat:
            states.append(part.init(spec))
            spec = message_spec(part, spec)
        return tuple(states)

    def encode(x, states, ctx):
        new = []
        for part, state in zip(flat, states, strict=True):
            x, state = part.encode(x, state, ctx)
            new.append(state)
        return x, tuple(new)

    def decode(message, states):
        new = []
        for part, state in zip(flat[::-1], states[::-1], strict=True):
            message, state = part.decode(message, state)
            new.append(state)
        return message, tuple(new[::-1])

    name = "+".join(part.name for part in flat) or "identity"
    return Codec(
        init,
        encode,
        decode,
        smooth=not rough,
        name=name,
        parts=flat,
        exact=all(part.exact for part in flat),
    )


def split_smooth(codec: Codec) -> tuple[Codec, Codec]:
    """Parts a codec into its smooth beginning and its rough rest (either may be empty).

    Example:
      >>> smooth, rough = split_smooth(chain())
      >>> smooth.name, rough.name
      ('identity', 'identity')
    """
    parts = codec.parts or (codec,)
    smooth = [part for part in parts if part.smooth]
    return chain(*smooth), chain(*parts[len(smooth) :])


def is_noisy(codec: Codec) -> bool:
    """Whether any part of a codec adds noise for privacy.

    Example:
      >>> is_noisy(chain())
      False
    """
    inside = (*codec.parts, *codec.entries.values())
    return codec.mechanism is not None or any(map(is_noisy, inside))


def _is_late(before: Codec, after: Codec) -> bool:
    """Whether noise stands after a codec that has coded the same floats already."""
    if before.smooth or before.mechanism:
        return False
    if after.mechanism or not before.entries:
        return is_noisy(after)
    both = before.entries.keys() & after.entries.keys()
    return any(
        is_noisy(after.entries[k]) and not is_noisy(before.entries[k]) for k in both
    )


def wire_bytes(codec: Codec, spec: Tree) -> int:
    """Bytes that a codec sends for an input, asked of the message itself.

    Args:
      codec: the codec.
      spec: shapes and dtypes of the input.

    Returns:
      The payload in bytes, without framing. For a message with `Sized` or `Lossless`
      leaves it is the bound that holds for every input; the meter states the fact.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> wire_bytes(chain(), jax.ShapeDtypeStruct((2, 3), jnp.float32))
      24
    """
    return tree_bytes(message_spec(codec, spec))


def state_bytes(codec: Codec, spec: Tree) -> int:
    """Bytes of memory that one end of a codec holds between messages.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> state_bytes(chain(), jax.ShapeDtypeStruct((2, 3), jnp.float32))
      0
    """
    return tree_bytes(jax.eval_shape(lambda: codec.init(spec)))


def nonfinite(state: Tree) -> jax.Array:
    """How many values a sender had to replace so far, over all parts of its state.

    The state of a smooth codec is constant in a split, so there it is the count of one
    message. What a step adds is a metric of it: "link_0/nonfinite" for activations,
    "link_0/backward_nonfinite" for gradients.

    Args:
      state: of any codec, also a chain or a tree of them.

    Returns:
      int32 scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> int(nonfinite(({"nonfinite": jnp.int32(2)}, {"nonfinite": jnp.int32(1)})))
      3
    """
    return sum(_counts(state), start=jnp.int32(0))


def newly_nonfinite(name: str, before: Tree, after: Tree) -> dict[str, jax.Array]:
    """What one message has added to `nonfinite`, as a metric.

    Args:
      name: of the metric.
      before: the sender's state.
      after: its state after the message.

    Returns:
      `{name: int32 scalar}`; nothing for a codec that counts nothing.

    Example:
      >>> found = newly_nonfinite("lost", {"nonfinite": 2}, {"nonfinite": 5})
      >>> int(found["lost"]), newly_nonfinite("lost", (), ())
      (3, {})
    """
    if not _counts(after):
        return {}
    return {name: nonfinite(after) - nonfinite(before)}


def _counts(state: Tree) -> list:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [a for path, a in leaves if path_name(path[-1:]) == "nonfinite"]
