"""Stand-ins that tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.codec import Codec, Context
from splitjax.core.memory import blank, fill, memories
from splitjax.core.tree import spec_of
from splitjax.runtime import frame
from splitjax.storage.rows import Rows


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


class Ends:
    """The two ends of a codec with a memory per example, and real frames between.

    Args:
      codec: with one memory in its state.
      count: of examples.
      jit: whether the receiver is compiled; the sender always is.
    """

    def __init__(self, codec: Codec, count: int, *, jit: bool = True):
        self.codec, self.tx, self.rx = codec, Rows(count), Rows(count)
        self.states: dict = {}
        self.message = self.data = None
        self._encode = jax.jit(lambda x, s, i, k: codec.encode(x, s, Context(k, ids=i)))
        self._decode = jax.jit(codec.decode) if jit else codec.decode
        self._visits = 0

    def send(self, x, ids):
        """What arrives of a batch, as the other end has it."""
        ids, like = np.asarray(ids, np.int32), self.codec.init(spec_of(x))
        key = jax.random.fold_in(jax.random.key(0), self._visits)
        self._visits += 1
        self.message = self._run(
            "tx", like, ids, lambda s: self._encode(x, s, ids, key)
        )
        schema = frame.Schema.of(self.message)
        sent = jax.device_get(self.message)
        self.data = frame.write(schema, sent, kind="up", run=0, slot=0, tick=0, hop=0)
        _, arrived = frame.read(schema, self.data)
        return self._run("rx", like, ids, lambda s: self._decode(arrived, s))

    def _run(self, end, like, ids, run):
        rows = getattr(self, end)
        held = self.states.get(end, blank(like))
        out, new = run(fill(held, [rows.gather(ids, m) for m in memories(like)]))
        for memory in memories(new):
            rows.put(ids, memory)
        self.states[end] = blank(new)
        return out

    def equal(self) -> bool:
        """Whether both ends remember the same examples, to the bit."""
        return list(self.tx) == list(self.rx) and all(
            self.tx[n].data.tobytes() == self.rx[n].data.tobytes()
            and self.tx[n][1:] == self.rx[n][1:]
            for n in self.tx
        )
