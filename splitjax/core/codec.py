"""A codec: what crosses a link instead of an array, and the way back from it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from splitjax.core.tree import Tree, is_float, nearest


class Context(NamedTuple):
    """What an encoder may know besides its input.

    Attributes:
      key: a typed PRNG key, or None.
      mask: bool, the shape of the leaves' leading axes; False marks padding.
      train: whether this is a training step.
      tick: the number of the micro-batch.
    """

    key: jax.Array | None = None
    mask: jax.Array | None = None
    train: bool = True
    tick: int | jax.Array = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sized:
    """An array of which only the first rows are sent.

    Attributes:
      buffer: an array `[N, ...]`; rows from `used` on are zero.
      used: int32 scalar. It does not cross the link by itself: the length of the
        buffer's bytes says it.

    Example:
      >>> import jax.numpy as jnp
      >>> sized = Sized(jnp.zeros((8, 2)), jnp.int32(3))
      >>> sized.buffer.shape
      (8, 2)
    """

    buffer: Any
    used: Any


def is_sized(node: Any) -> bool:
    """Tells whether a node is a `Sized`.

    Example:
      >>> is_sized(Sized(None, None))
      True
    """
    return isinstance(node, Sized)


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
    """

    init: Callable[[Tree], Tree]
    encode: Callable[[Tree, Tree, Context], tuple[Tree, Tree]]
    decode: Callable[[Tree, Tree], tuple[Tree, Tree]]
    smooth: bool = False
    name: str = "codec"
    parts: tuple["Codec", ...] = ()


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
        ctx = Context(jax.random.key(0))
        return codec.encode(x, codec.init(spec), ctx)[0]

    return jax.eval_shape(run, spec)


def chain(*codecs: Codec) -> Codec:
    """Applies codecs one after the other: each encodes the message of the last.

    Args:
      *codecs: the smooth ones first. None at all sends everything as it is.

    Raises:
      ValueError: when a smooth codec follows a rough one: the gradient could not pass
        through the rough one to the part of the model that the smooth one belongs to.

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
    return Codec(init, encode, decode, smooth=not rough, name=name, parts=flat)


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


def on_tree(codecs: dict[str, Codec]) -> Codec:
    """Maps codecs over the entries of a dict; what no codec is named for crosses as is.

    Args:
      codecs: by key of the dict that arrives at the codec.

    Raises:
      ValueError: on use, when a key is not in the dict.

    Example:
      >>> on_tree({"h": chain()}).name
      'h:identity'
    """

    smooth = {key: split_smooth(codec)[0] for key, codec in codecs.items()}
    rough = {key: split_smooth(codec)[1] for key, codec in codecs.items()}
    if all(codec.name == "identity" for codec in rough.values()):
        return _mapped(smooth, smooth=True)
    if all(codec.name == "identity" for codec in smooth.values()):
        return _mapped(rough, smooth=False)
    return chain(_mapped(smooth, smooth=True), _mapped(rough, smooth=False))


def _mapped(codecs: dict[str, Codec], *, smooth: bool) -> Codec:
    def check(tree):
        for name in codecs:
            if not isinstance(tree, dict) or name not in tree:
                keys = tuple(tree) if isinstance(tree, dict) else (type(tree).__name__,)
                raise ValueError(
                    f"on_tree has no entry {name!r}: {nearest(name, keys)}"
                )

    def init(spec):
        check(spec)
        return {name: codec.init(spec[name]) for name, codec in codecs.items()}

    def each(run, tree, state):
        check(tree)
        out, new = dict(tree), {}
        for name, codec in codecs.items():
            out[name], new[name] = run(codec, tree[name], state[name])
        return out, new

    def encode(x, state, ctx):
        return each(lambda codec, x, s: codec.encode(x, s, ctx), x, state)

    def decode(message, state):
        return each(lambda codec, m, s: codec.decode(m, s), message, state)

    name = ",".join(f"{key}:{codec.name}" for key, codec in codecs.items())
    return Codec(init, encode, decode, smooth=smooth, name=name)


def on_leaves(
    encode: Callable[[jax.Array, jax.Array | None, Context, int], Any],
    decode: Callable[[Any], Any],
    *,
    smooth: bool = False,
    name: str,
) -> Codec:
    """Lifts a stateless codec of one array to pytrees.

    Integer and bool leaves cross as they are. A `Sized` leaf is given as its buffer and
    its count of used rows.

    Args:
      encode: `(array, used or None, ctx, index) -> node`; index numbers the leaves.
      decode: `node -> array or Sized`, for nodes that `encode` made.
      smooth: see `Codec`.
      name: see `Codec`.

    Example:
      >>> import jax.numpy as jnp
      >>> half = on_leaves(lambda x, used, ctx, i: [x / 2], lambda node: node[0] * 2,
      ...     smooth=True, name="half")
      >>> message, _ = half.encode({"h": jnp.ones(1), "ids": jnp.arange(2)}, (), None)
      >>> float(message["h"].node[0][0]), message["ids"].shape
      (0.5, (2,))
    """

    def encode_tree(x, state, ctx):
        leaves, treedef = jax.tree.flatten(x, is_leaf=is_sized)
        out = []
        for index, leaf in enumerate(leaves):
            array, used = leaf, None
            if is_sized(leaf):
                array, used = leaf.buffer, leaf.used
            if is_float(array):
                leaf = Encoded(encode(array, used, ctx, index), name)
            out.append(leaf)
        return jax.tree.unflatten(treedef, out), state

    def mine(node):
        # In a chain marks stand inside each other, and the last codec's is innermost.
        if not isinstance(node, Encoded) or node.by != name:
            return False
        inside = jax.tree.leaves(node.node, is_leaf=mine)
        return not any(mine(a) for a in inside)

    def decode_tree(message, state):
        def one(node):
            return decode(node.node) if mine(node) else node

        return jax.tree.map(one, message, is_leaf=mine), state

    return Codec(lambda spec: (), encode_tree, decode_tree, smooth=smooth, name=name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """Marks where `on_leaves` put what it made of one array, and under which name."""

    node: Any
    by: str = dataclasses.field(metadata={"static": True})


def tree_bytes(tree: Tree) -> int:
    """Bytes of all leaves of a tree of arrays or specs; a `Sized` counts whole.

    Example:
      >>> import jax.numpy as jnp
      >>> tree_bytes({"h": jnp.zeros((2, 3)), "s": Sized(jnp.zeros(4), jnp.int32(1))})
      40
    """

    def one(node):
        leaves = jax.tree.leaves(node.buffer if is_sized(node) else node)
        return sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in leaves)

    return sum(one(node) for node in jax.tree.leaves(tree, is_leaf=is_sized))


def wire_bytes(codec: Codec, spec: Tree) -> int:
    """Bytes that a codec sends for an input, asked of the message itself.

    Args:
      codec: the codec.
      spec: shapes and dtypes of the input.

    Returns:
      The payload in bytes, without framing. For a message with `Sized` leaves it is the
      bound that holds for every input; the meter states the fact.

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
