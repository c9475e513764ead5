"""Stand-ins that tests share."""

import jax
import jax.numpy as jnp

from splitjax.core.codec import Codec


def memory() -> Codec:
    """A rough codec with state on both ends: what is new since the last message.

    A message that is lost, applied twice or taken out of order parts the two ends.
    """

    def init(spec):
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), spec)

    def encode(x, state, ctx):
        message = jax.tree.map(lambda a, m: a - m, x, state)
        return decode_to(message, state)

    def decode_to(message, state):
        return message, jax.tree.map(jnp.add, state, message)

    def decode(message, state):
        state = decode_to(message, state)[1]
        return state, state

    return Codec(init, encode, decode, name="memory")
