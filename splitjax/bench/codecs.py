"""What codecs cost: time against a copy in memory, bytes, errors; and their peers'."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from splitjax import codecs
from splitjax.core.codec import Codec, Context
from splitjax.core.tree import spec_of
from splitjax.runtime.frame import payload_bytes
from splitjax.train.timing import Row, Timed, interleaved, rows

SHAPE = (32, 128, 768)
DIRECT_BOUND = 0.01  # of the time of a convolution that is no FFT


class Case(NamedTuple):
    """One codec, and what its times may be at most.

    Attributes:
      codec: what is measured.
      bound: of encode and of decode each, as a multiple of a copy; None for none.
      inner: the codec whose times `bound` is a multiple of, instead of a copy.
    """

    codec: Codec
    bound: float | None = None
    inner: Codec | None = None


class Peer(NamedTuple):
    """A figure of another library, measured by its own means on 2 CPU cores.

    Attributes:
      name: the library, and what it did.
      codec: ours that does the same.
      shape: of the float32 array.
      seconds: what of ours is compared ("encode", "decode", "both"), and its time.
      size: its bytes, or None.
    """

    name: str
    codec: Codec
    shape: tuple[int, ...]
    seconds: dict[str, float]
    size: int | None


def cases() -> list[Case]:
    """The codecs that are measured, with the bounds that they are built for.

    Example:
      >>> cases()[0].codec.name
      'cast(bf16)'
    """
    change = codecs.quantize(2, power_of_two=True)
    return [
        Case(codecs.cast("bf16")),
        Case(codecs.cast("f16")),
        Case(codecs.cast("f8_e4m3")),
        Case(codecs.quantize(8), 3.0),
        Case(codecs.quantize(8, axis="channel"), 3.0),
        Case(codecs.quantize(4), 2.5),
        Case(codecs.quantize(4, axis="group")),
        Case(codecs.quantize(2)),
        Case(codecs.quantize(8, rounding="stochastic"), 3.0),
        Case(codecs.quantize(4, rounding="stochastic"), 3.0),
        Case(codecs.binary(), 2.0),
        Case(codecs.scaled_sign(), 2.0),
        Case(codecs.top_k(0.01), 15.0),
        Case(codecs.top_k(0.1)),
        Case(codecs.top_k(0.01, axis="all")),
        Case(codecs.random_k(0.1)),
        Case(codecs.feedback(codecs.quantize(4))),
        Case(codecs.projection(8)),
        Case(codecs.projection(96)),
        Case(codecs.powersgd(4, flatten=True)),
        Case(codecs.c3(4)),
        Case(codecs.c3(16)),
        Case(codecs.bounded(0.01, relative=True)),
        Case(codecs.uniform(0.1)),
        Case(codecs.delta(change), 3.0, inner=change),
    ]


def peers() -> list[Peer]:
    """Figures of other libraries, at their sizes.

    Example:
      >>> peers()[0].size
      2000020
    """
    eight, million, batch = codecs.quantize(8), (1000, 1000), (8, 128, 768)
    image = (128, 784)
    return [
        Peer("hivemind fp16", codecs.cast("f16"), million, {"both": 2.3e-3}, 2000020),
        Peer("hivemind uniform8", eight, million, {"both": 3.4e-3}, 1001052),
        Peer("hivemind blockwise8", eight, million, {"both": 1.009}, 1002040),
        Peer("AC-SGD 8 bits", eight, batch, {"encode": 3.3e-3}, 787968),
        Peer("AC-SGD 4 bits", codecs.quantize(4), batch, {}, 394752),
        Peer("AC-SGD 2 bits", codecs.quantize(2), batch, {}, 198144),
        Peer("C3-SL R=4", codecs.c3(4), (64, 2048), {"encode": 47e-3}, None),
        Peer("C3-SL R=4", codecs.c3(4), (64, 2048), {"decode": 16e-3}, None),
        Peer("SecretFlow zero-point 8", eight, image, {}, 100800),
        Peer("SecretFlow zero-point 4", codecs.quantize(4), image, {}, 100800),
        Peer("SecretFlow top-k 0.9", codecs.top_k(0.1), image, {}, 201145),
    ]


def activations(shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers, float32, of which some channels are large, as in a transformer.

    Example:
      >>> activations((2, 3)).shape
      (2, 3)
    """
    chance = np.random.default_rng(0)
    scale = np.exp(0.5 * chance.standard_normal(shape[-1]))
    return (0.6 * scale * chance.standard_normal(shape)).astype(np.float32)


def steps_of(
    codec: Codec, x: np.ndarray
) -> tuple[dict[str, Callable], dict[str, float]]:
    """Encode and decode of a second message, compiled; its bytes and its error.

    The first message of a codec that remembers is no rule: it sends a basis, or rows
    that are new.

    Returns:
      The two by name, and "bytes" (as a frame has them) and "error" (relative L2).
    """
    a, key = jnp.asarray(x), jax.random.key(0)
    ids = jnp.arange(x.shape[0], dtype=jnp.int32)

    @jax.jit
    def encode(a, state, key, ids):
        return codec.encode(a, state, Context(key, ids=ids))

    decode = jax.jit(codec.decode)
    tx = rx = codec.init(spec_of(a))
    message, tx = encode(a, tx, key, ids)
    _, rx = decode(message, rx)
    # Another batch of the same examples, a little later in training.
    a = a + 0.05 * jnp.roll(a, 1, axis=-1)
    message, _ = encode(a, tx, key, ids)
    y, _ = decode(message, rx)
    error = float(jnp.linalg.norm(y - a) / jnp.linalg.norm(a))
    steps = {
        "encode": lambda: encode(a, tx, key, ids),
        "decode": lambda: decode(message, rx),
    }
    return steps, {"bytes": payload_bytes(message), "error": error}


def measure(case: Case, x: np.ndarray, timed: Timed = interleaved) -> list[Row]:
    """The rows of one codec: encode and decode against a copy, bytes, and the error.

    Args:
      case: the codec and its bounds.
      x: what it encodes, float32.
      timed: as `interleaved`, with its rounds.
    """
    name, target = case.codec.name, np.empty_like(x)
    steps, facts = steps_of(case.codec, x)
    own = {f"{name}, {what}": step for what, step in steps.items()}
    copy = {"memcpy": lambda: np.copyto(target, x)}
    inner = {}
    if case.inner:
        inner = steps_of(case.inner, x)[0]
    times = timed({**copy, **own, **inner})
    bounds = {} if case.inner or case.bound is None else dict.fromkeys(own, case.bound)
    made = rows({k: times[k] for k in (*copy, *own)}, "memcpy", bounds)[1:]
    for what in inner:
        pair = {k: times[k] for k in (what, f"{name}, {what}")}
        limit = {} if case.bound is None else dict.fromkeys(own, case.bound)
        made.append({**rows(pair, what, limit)[1], "reference": f"inner {what}"})
    made.append(_row(f"{name}, bytes", facts["bytes"], "B", "float32", x.nbytes))
    made.append(_row(f"{name}, error", facts["error"], "relative L2", "the input", 1))
    return made


def against(peer: Peer, timed: Timed = interleaved) -> list[Row]:
    """The rows of one peer: our time and bytes over its own."""
    name = f"{peer.codec.name} for {peer.name}"
    steps, facts = steps_of(peer.codec, activations(peer.shape))
    made = []
    if peer.seconds:
        times = timed(steps)
        times["both"] = [sum(pair) for pair in zip(*times.values(), strict=True)]
        for what, theirs in peer.seconds.items():
            ours = float(np.median(times[what]))
            made.append(_row(f"{name}, {what}", ours, "s", peer.name, theirs, 1.0))
    if peer.size:
        size = facts["bytes"]
        made.append(_row(f"{name}, bytes", size, "B", peer.name, peer.size))
    return made


def against_direct(
    timed: Timed = interleaved, shape: tuple[int, int] = (64, 2048)
) -> list[Row]:
    """C3's encode by FFT over the same convolution as a product with every shift."""
    codec, ratio = codecs.c3(4), 4
    x = activations(shape)
    fast = steps_of(codec, x)[0]["encode"]
    turn = jnp.arange(shape[1])
    shifts = (turn[None] - turn[:, None]) % shape[1]
    given, keys = jnp.asarray(x), jnp.asarray(activations((ratio, shape[1])))

    @jax.jit
    def direct(x, keys):
        groups = x.reshape(-1, ratio, shape[1])
        return sum(groups[:, i] @ keys[i][shifts] for i in range(ratio))

    name = f"{codec.name}, encode of {list(shape)}"
    times = timed({"direct convolution": lambda: direct(given, keys), name: fast})
    return rows(times, "direct convolution", {name: DIRECT_BOUND})[1:]


def _row(
    name: str,
    value: float,
    unit: str,
    reference: str,
    theirs: float,
    bound: float | None = None,
) -> Row:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "reference": reference,
        "ratio": value / theirs,
        "bound": bound,
    }
