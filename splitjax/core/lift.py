"""Lifts codecs of one array, or of one entry, to pytrees."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.codec import Codec, Context, chain, split_smooth
from splitjax.core.message import is_sized
from splitjax.core.tree import Tree, is_float, nearest


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
    return Codec(init, encode, decode, smooth=smooth, name=name, entries=codecs)


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


def counted(
    encode: Callable[..., tuple],
    decode: Callable[[Any, dict], Any],
    *,
    constants: Callable[[Tree], dict] = lambda spec: {},
    more: tuple[str, ...] = (),
    smooth: bool = False,
    name: str,
) -> Codec:
    """As `on_leaves`, for a codec with constants that counts what it had to replace.

    Args:
      encode: `(array, used or None, ctx, index, constants) -> (node, count, ...)`, with
        the count of replaced values as an int32 scalar, and then those of `more`.
      decode: `(node, constants) -> array or Sized`.
      constants: `spec -> dict of arrays` that both ends hold alike.
      more: names of what else is counted.
      smooth: see `Codec`.
      name: see `Codec`.

    Returns:
      A codec whose state is the constants and the counts: "nonfinite", and `more`.

    Example:
      >>> import jax.numpy as jnp
      >>> def encode(x, used, ctx, index, constants):
      ...     bad = jnp.isnan(x)
      ...     return [jnp.where(bad, 0, x)], jnp.sum(bad, dtype=jnp.int32)
      >>> codec = counted(encode, lambda node, constants: node[0], name="clean")
      >>> x = jnp.array([1, jnp.nan])
      >>> int(codec.encode(x, codec.init(x), None)[1]["nonfinite"])
      1
    """

    names = ("nonfinite", *more)

    def init(spec):
        return {**{count: jnp.int32(0) for count in names}, **constants(spec)}

    def encode_tree(x, state, ctx):
        counts = {count: state[count] for count in names}

        def one(*args):
            node, *new = encode(*args, state)
            for count, n in zip(names, new, strict=True):
                counts[count] = counts[count] + n
            return node

        message, _ = on_leaves(one, lambda node: node, name=name).encode(x, (), ctx)
        return message, {**state, **counts}

    def decode_tree(message, state):
        back = on_leaves(lambda *_: None, lambda node: decode(node, state), name=name)
        return back.decode(message, ())[0], state

    return Codec(init, encode_tree, decode_tree, smooth=smooth, name=name)


def remembering(
    init: Callable[[Any, bool], dict],
    encode: Callable[..., tuple[Any, dict, jax.Array]],
    decode: Callable[[Any, dict], tuple[Any, dict]],
    *,
    name: str,
) -> Codec:
    """As `on_leaves`, for a codec that keeps arrays for each leaf between messages.

    Args:
      init: `(spec of the array, whether it is Sized) -> state of the leaf`.
      encode: `(array, used or None, ctx, state) -> (node, state, count)`, with the
        count of replaced values as an int32 scalar.
      decode: `(node, state) -> (array or Sized, state)`.
      name: see `Codec`.

    Returns:
      A rough codec. Its state has a dict for each float leaf, in their order under
      "leaves", and the count under "nonfinite".

    Raises:
      ValueError: on use, when there are not as many float leaves as at init, or when
        encode finds that one has another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> add = lambda x, used, ctx, s: ([x], {"sum": s["sum"] + x}, jnp.int32(0))
      >>> codec = remembering(lambda spec, sized: {"sum": jnp.zeros(spec.shape)}, add,
      ...     lambda node, state: (node[0], state), name="add")
      >>> _, state = codec.encode(jnp.ones(2), codec.init(jnp.ones(2)), None)
      >>> state["leaves"][0]["sum"].tolist()
      [1.0, 1.0]
    """

    def floats(tree):
        leaves = jax.tree.leaves(tree, is_leaf=is_sized)
        pairs = [(a.buffer, True) if is_sized(a) else (a, False) for a in leaves]
        return [pair for pair in pairs if is_float(pair[0])]

    def init_tree(spec):
        leaves = tuple(init(*pair) for pair in floats(spec))
        return {"nonfinite": jnp.int32(0), "leaves": leaves}

    def encode_tree(x, state, ctx):
        if len(floats(x)) != len(state["leaves"]):
            shapes = [list(a.shape) for a, _ in floats(x)]
            raise ValueError(
                f"{name} was made for {len(state['leaves'])} float leaves and got "
                f"{len(shapes)}, of the shapes {shapes}. Make another state: init(spec)"
            )
        new, counts = [], [state["nonfinite"]]

        def one(array, used, ctx, index):
            node, leaf, count = encode(array, used, ctx, state["leaves"][len(new)])
            new.append(leaf)
            counts.append(count)
            return node

        message, _ = on_leaves(one, lambda node: node, name=name).encode(x, (), ctx)
        return message, {"nonfinite": sum(counts), "leaves": tuple(new)}

    def decode_tree(message, state):
        new = []

        def one(node):
            x, leaf = decode(node, state["leaves"][len(new)])
            new.append(leaf)
            return x

        x, _ = on_leaves(lambda *_: None, one, name=name).decode(message, ())
        return x, {**state, "leaves": tuple(new)}

    return Codec(init_tree, encode_tree, decode_tree, name=name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """Marks where `on_leaves` put what it made of one array, and under which name."""

    node: Any
    by: str = dataclasses.field(metadata={"static": True})
