"""Only real tokens cross: padded rows become one row of tokens, and back."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.codec import Codec
from splitjax.core.message import Sized, is_sized
from splitjax.core.tree import Tree, is_float

MAX_TOKENS = 2**16 - 1  # a length is a uint16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ragged:
    """What crosses for a padded batch.

    Attributes:
      tree: the dict without its mask; float leaves `[B, T, ...]` are
        `Sized([B * T, ...], number of tokens)`.
      lengths: uint16 `[B]`.
      steps: T.
    """

    tree: Tree
    lengths: Any
    steps: int = dataclasses.field(metadata={"static": True})


def ragged(mask: str = "mask") -> Codec:
    """Leaves padding out of what crosses.

    Token t of example b goes to row `lengths[0] + ... + lengths[b - 1] + t`. Encode and
    decode are each other's adjoint, so a gradient of the message has zeros where the
    message has: it is sent as short as the message was. (Forward mode is not defined.)

    Args:
      mask: the entry of the dict that holds the mask, bool `[B, T]`; False marks
        padding, which follows the tokens of each example. The mask itself does not
        cross: the lengths do.

    Returns:
      A smooth codec of a dict. Float leaves `[B, T, ...]` are packed, the others cross
      as they are. Decoding gives zeros in the padding.

    Raises:
      ValueError: on use, when the dict has no such mask or T is above 65535. Padding
        before tokens cannot be seen under `jit`; tokens would be lost.

    Example:
      >>> import jax.numpy as jnp
      >>> codec = ragged()
      >>> x = {"h": jnp.ones((2, 3, 1)), "mask": jnp.array([[1, 1, 0], [1, 0, 0]]) > 0}
      >>> message, state = codec.encode(x, codec.init(x), None)
      >>> int(message.tree["h"].used), message.lengths.tolist()
      (3, [2, 1])
      >>> codec.decode(message, state)[0]["h"][..., 0].tolist()
      [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """

    def encode(x, state, ctx):
        real = _checked(x, mask)
        count, steps = real.shape
        lengths = real.sum(1, dtype=jnp.int32)
        there, back = places(lengths, steps)

        def pack(a):
            if is_sized(a):
                raise ValueError("ragged takes padded arrays; one is packed already")
            if not is_float(a) or a.shape[:2] != (count, steps):
                return a
            rows = a.reshape(count * steps, *a.shape[2:])
            return Sized(_move(rows, back, there), jnp.sum(lengths))

        tree = {name: leaf for name, leaf in x.items() if name != mask}
        tree = jax.tree.map(pack, tree, is_leaf=is_sized)
        return Ragged(tree, lengths.astype(jnp.uint16), steps), state

    def decode(message, state):
        lengths, steps = message.lengths.astype(jnp.int32), message.steps
        there, back = places(lengths, steps)

        def unpack(a):
            if not is_sized(a):
                return a
            rows = _move(a.buffer, there, back)
            return rows.reshape(*lengths.shape, steps, *a.buffer.shape[1:])

        tree = jax.tree.map(unpack, message.tree, is_leaf=is_sized)
        step = jax.lax.iota(jnp.int32, steps)
        return {**tree, mask: step[None] < lengths[:, None]}, state

    name = "ragged" if mask == "mask" else f"ragged({mask})"

    def init(spec):
        _checked(spec, mask)
        return ()

    return Codec(init, encode, decode, smooth=True, name=name)


def _checked(x: Tree, name: str) -> Any:
    if not isinstance(x, dict) or name not in x:
        have = ", ".join(x) if isinstance(x, dict) else f"a {type(x).__name__}"
        raise ValueError(f"ragged needs a dict with a mask under {name!r}; got: {have}")
    real = x[name]
    if real.dtype != jnp.bool_ or real.ndim != 2 or real.shape[1] > MAX_TOKENS:
        raise ValueError(
            f"ragged needs {name!r} as bool [B, T] with T up to {MAX_TOKENS}; got "
            f"{real.dtype} {list(real.shape)}"
        )
    return real


def places(lengths: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """For each padded place its row, and for each row its place; B * T means none.

    Example:
      >>> there, back = places(jnp.array([1, 2]), 2)
      >>> there.tolist(), back.tolist()
      ([0, 4, 1, 2], [0, 2, 3, 4])
    """
    total = lengths.shape[0] * steps
    first = jnp.cumsum(lengths) - lengths
    step = jax.lax.iota(jnp.int32, steps)[None]
    there = jnp.where(step < lengths[:, None], first[:, None] + step, total).reshape(-1)
    back = jnp.full((total,), total, jnp.int32)
    back = back.at[there].set(jax.lax.iota(jnp.int32, total), mode="drop")
    return there, back


@jax.custom_vjp
def _move(rows: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """Row i of the result is row source[i], or zero; `target` undoes `source`.

    The adjoint gathers by `target`; autodiff would scatter, three times as slow.
    """
    return jnp.take(rows, source, axis=0, mode="fill", fill_value=0)


def _move_forward(rows, source, target):
    return _move(rows, source, target), (source, target)


def _move_backward(places, gradient):
    source, target = places
    return _move(gradient, target, source), None, None


_move.defvjp(_move_forward, _move_backward)
