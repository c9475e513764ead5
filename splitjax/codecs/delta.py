"""What is new about an example since its last visit: AQ-SGD's memory per example."""

import dataclasses

import jax
import jax.numpy as jnp

from splitjax.codecs import examples
from splitjax.codecs.delta_message import Delta, Direct
from splitjax.codecs.examples import (
    Rows,
    as_they_stand,
    back_in_place,
    in_front,
    like,
)
from splitjax.codecs.grid import HUGE, TINY
from splitjax.codecs.pack import pack_bits, unpack_bits
from splitjax.codecs.remember import format_of, recalled, remembered
from splitjax.core.codec import Codec
from splitjax.core.memory import Ids
from splitjax.core.message import Sized
from splitjax.core.tree import nearest

COARSE = 0.5**0.5
SENT = ("full", "quantized")
FIRST = (*SENT, "half")


def delta(
    inner: Codec,
    *,
    memory: str = "f32",
    first: str = "full",
    evaluation: str = "full",
    check: int = 0,
    measure: bool = False,
) -> Codec:
    """Sends how an example differs from what was sent of it before.

    Both ends remember m for each example. The sender encodes x - m, both add what is
    decoded of that, `m' = m + decode(encode(x - m))`, and the receiver goes on with m'.
    As training settles x - m shrinks, and the inner grid with it: an x that stays is
    met 2^(bits - 1) times as closely at each visit. An x that moves by at most v from
    visit to visit is met to about v / (2^(bits - 1) - 1).

    Both ends must remember equal bits, so the inner codec must be `exact`. Then m' is a
    sum of two numbers that all devices have alike, rounded once. (quantize: code * step
    has 16 significant bits at most, so no device rounds it, fused or not.) Magnitudes
    below 2^-100 are taken for zero, so that no sum is subnormal.

    It stands after `ragged`, where an example's rows are its own tokens: what is
    remembered is `[tokens, D]` for each, whatever a batch is padded to. (Before ragged
    it could not stand, being rough.) The ids come by `ctx.ids` and cross in the
    message; the lengths are in ragged's. Arrays `[B, ...]` have one row an example.

    A new example, or one with another count of tokens than before, is sent whole. A row
    with id -1 is nobody's: it is not sent, and arrives as zeros. Values that are not
    finite, or above 2^126, are counted and change nothing.

    The state holds the memories of one batch, which a driver fills in and takes out:
    see `core.memory`. Dropout or augmentation before the cut are a change at each
    visit, and nothing settles: switch them off (a frozen edge has none). Data that
    never comes again is sent whole.

    Args:
      inner: encodes the change; any exact rough codec, as `quantize`.
      memory: "f32", "f16" (of magnitudes above 65504 the rest is sent each time),
        "int8" or "int4" ("delta-lowbits"): what is remembered, not what arrives.
      first: a new example crosses as it is ("full"), in float16 ("half"), or by the
        inner codec as a change from zero ("quantized").
      evaluation: outside of training everything crosses as it is ("full") or by the
        inner codec ("quantized"), and no memory is read or written.
      check: at each such visit of an example the sender adds a digest of what it
        remembers, 4 bytes. Where the receiver's differs it counts (`parted` in its
        state) and forgets the example; the driver has the sender forget it as well,
        so that it is sent whole at its next visit. 0: never.
      measure: keep in the sender's state `c_q`, the relative error |c - c'| / |c| of
        the last message's changes c, and `coarse`, how many messages had more than the
        .707 that the theorem allows.

    Returns:
      A rough codec. It sends the inner codec's bytes of the changes, the rows that are
      whole, 4 bytes and a bit an example; `wire_bytes` bounds both kinds of rows.

    Raises:
      ValueError: for an inner codec that is smooth or not exact, or an argument that is
        none of these; on use in training without ids, for shapes other than those of
        the state, and for arrays without rows of examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.codecs import Context, quantize
      >>> codec = delta(quantize(2, power_of_two=True), first="quantized")
      >>> x = jnp.array([[0.3, -1.0, 0.9, 0.5]])
      >>> tx = rx = codec.init(x)
      >>> ctx = Context(ids=jnp.array([7]))
      >>> errors = []
      >>> for visit in range(4):
      ...     message, tx = codec.encode(x, tx, ctx)
      ...     y, rx = codec.decode(message, rx)
      ...     errors.append(round(float(jnp.max(jnp.abs(y - x))), 4))
      >>> errors
      [0.5, 0.2, 0.0498, 0.0125]

    Reference:
      J. Wang et al., "Fine-tuning Language Models over Slow Networks using Activation
      Compression with Guarantees", 2022, arXiv:2206.01299 (AQ-SGD).

    Differs:
      The grid is the inner codec's, with no clip above: its error is half a step
      everywhere. Whether an example is new is told for each by a bit, not by the epoch.
      A low-bit memory is rounded after the activation is made of it.
    """
    if inner.smooth or not inner.exact:
        why = "is smooth" if inner.smooth else "does not decode equal bits everywhere"
        raise ValueError(
            f"delta({inner.name}): the inner codec {why}, and the two ends' memories "
            "would part. Take an exact one: quantize(..., power_of_two=True) or cast"
        )
    for option, known in ((first, FIRST), (evaluation, SENT)):
        if option not in known:
            raise ValueError(f"delta cannot send {option!r}: {nearest(option, known)}")
    if check < 0:
        raise ValueError(f"delta(check={check}): every so many visits, or 0 for never")
    kind, half = format_of(memory), format_of("f16")

    def recall(memory, gaps, count):
        return recalled(kind, memory, [gap.remembered(count) for gap in gaps], count)

    def line_up(padded, gaps, rows, known, still):
        """What each row was, float32; zero where it is not known."""
        out = []
        for gap, array in zip(gaps, padded, strict=True):
            value = rows.line_up(gap, array)
            if gap.tokens or first == "quantized" or not still:  # else all are known
                value = jnp.where(like(rows.flags(gap, known), value), value, 0.0)
            out.append(value)
        return out

    def moving(known, ours):
        """Whose rows the inner codec sends."""
        return ours if first == "quantized" else known

    def whole_of(gap, value):
        if jnp.dtype(gap.dtype).itemsize < 4:
            return value.astype(gap.dtype)
        return half.keep(value)[0] if first == "half" else value

    def init(spec):
        rest, gaps, _ = examples.take_out(spec)
        count = examples.count_of(rest, gaps)
        zeros = [jnp.zeros(gap.remembered(count)) for gap in gaps]
        changes = tuple(gap.spec for gap in gaps)
        state = {
            "memory": remembered(kind, zeros, [gap.tokens for gap in gaps], count),
            "inner": inner.init(changes),
            "mirror": inner.init(changes),
            "nonfinite": jnp.int32(0),
            "parted": jnp.int32(0),
        }
        if measure:
            state |= {"c_q": jnp.float32(0), "coarse": jnp.int32(0)}
        return state

    def encode(x, state, ctx):
        if not ctx.train:
            if evaluation == "full":
                return Direct(x), state
            return Direct(inner.encode(x, state["inner"], ctx)[0]), state
        rest, gaps, arrays = examples.take_out(x)
        count = examples.count_of(rest, gaps)
        if ctx.ids is None:
            raise ValueError(
                "delta needs to know whose rows it sends: Context(ids=...), int32 [B]. "
                "In a run the batch has them as 'ids'"
            )
        ids = jnp.asarray(ctx.ids if count else -1, jnp.int32)  # none for no floats
        if ids.shape not in ((), (count,)):
            raise ValueError(f"delta: ids {ids.shape} for {count} examples: one each")
        ids = jnp.broadcast_to(ids, (count,))
        had, rows = state["memory"], Rows(rest, gaps, count)
        padded = recall(had, gaps, count)
        ours = ids >= 0
        known = ours & had.seen & (had.lengths == rows.lengths)
        new = ours & ~known

        def part(arrays, padded, *, still):
            """The changes of the rows that move, and the rows that are new."""
            changes, whole = [], []
            before = line_up(padded, gaps, rows, known, still)
            for gap, array, old in zip(gaps, arrays, before, strict=True):
                value = array.astype(jnp.float32)
                size = jnp.abs(value)
                good = still | (size <= HUGE)  # false for a NaN
                value = jnp.where(good & (size >= TINY), value, 0.0)
                change = jnp.where(good, value - old, 0.0)
                moved = rows.flags(gap, moving(known, ours))
                changes.append(in_front(change, moved, still=still))
                fresh, value = rows.flags(gap, new), whole_of(gap, value)
                none = Sized(jnp.zeros_like(value), jnp.int32(0))
                whole.append(none if still else in_front(value, fresh))
            return tuple(changes), None if first == "quantized" else tuple(whole)

        bad = jnp.int32(0)
        for gap, array in zip(gaps, arrays, strict=True):
            bad += examples.count_bad(array, rows.flags(gap, ours))
        # Most batches have no new example and no bad value.
        still = (bad == 0) & jnp.all(moving(known, ours))
        changes, whole = as_they_stand(still, part, arrays, padded)
        message, tx = inner.encode(changes, state["inner"], ctx)
        due = known & (had.visits % check == 0) if check else None
        sent = Delta(
            ids=Ids(ids),
            first=pack_bits(new.astype(jnp.uint8), 1),
            change=message,
            whole=whole,
            due=None if due is None else pack_bits(due.astype(jnp.uint8), 1),
            digests=None if due is None else in_front(examples.digest(had), due),
            rest=rest,
        )
        # The sender remembers what the receiver will, by the same program.
        _, after, mirror, decoded, _ = receive(sent, state["memory"], state["mirror"])
        new_state = {**state, "memory": after, "inner": tx, "mirror": mirror}
        new_state["nonfinite"] = state["nonfinite"] + bad
        if measure:
            new_state |= _measured(changes, decoded, state["coarse"])
        return sent, new_state

    def receive(sent, memory, mirror):
        """What arrives, and what is remembered of it; the same at both ends."""
        gaps = examples.gaps_of(sent.rest)
        count = sent.ids.array.shape[0]
        rows, had = Rows(sent.rest, gaps, count), memory
        padded = recall(had, gaps, count)
        ours = sent.ids.array >= 0
        new = ours & (unpack_bits(sent.first, 1, count) > 0)
        known = ours & ~new
        lost = known & ~(had.seen & (had.lengths == rows.lengths))
        if check:
            due = known & (unpack_bits(sent.due, 1, count) > 0)
            lost |= due & (back_in_place(sent.digests, due) != examples.digest(had))
        moves = moving(known, ours)

        def join(change, whole, padded, mirror, *, still):
            """What was, and what has become of it."""
            before = line_up(padded, gaps, rows, known, still)
            decoded, mirror = inner.decode(change, mirror)
            values = []
            for number, gap in enumerate(gaps):
                back = decoded[number].buffer
                if gap.tokens or not still:
                    moved = rows.flags(gap, moves)
                    back = back_in_place(decoded[number], moved, still=still)
                value = before[number] + back
                if whole is not None and not still:
                    fresh = rows.flags(gap, new)
                    given = back_in_place(whole[number], fresh).astype(jnp.float32)
                    value = jnp.where(like(fresh, value), given, value)
                values.append(value)
            return values, mirror, decoded if measure else ()

        values, mirror, decoded = as_they_stand(
            jnp.all(moves), join, sent.change, sent.whole, padded, mirror
        )
        kept = [rows.pad(gap, v) for gap, v in zip(gaps, values, strict=True)]
        after = remembered(kind, kept, [gap.tokens for gap in gaps], count)
        after = dataclasses.replace(
            after,
            lengths=jnp.where(ours, rows.lengths, 0),
            seen=ours & ~lost,
            visits=jnp.where(known & ~lost, had.visits + 1, 0),
        )
        arrived = [gap.restore(v) for gap, v in zip(gaps, values, strict=True)]
        x = examples.put_in(sent.rest, arrived)
        return x, after, mirror, decoded, jnp.sum(lost, dtype=jnp.int32)

    def decode(message, state):
        if isinstance(message, Direct):
            x = message.message
            return x if evaluation == "full" else inner.decode(x, state["mirror"])[
                0
            ], state
        x, after, mirror, _, lost = receive(message, state["memory"], state["mirror"])
        parted = state["parted"] + lost
        return x, {**state, "memory": after, "mirror": mirror, "parted": parted}

    name = f"delta({inner.name},{memory},{first}"
    name += f",{evaluation} evaluation" if evaluation != "full" else ""
    name += f",check {check})" if check else ")"
    return Codec(init, encode, decode, name=name)


def _measured(changes: list[Sized], decoded: tuple, coarse: jax.Array) -> dict:
    pairs = list(zip(changes, decoded, strict=True))
    norm = sum(jnp.sum(a.buffer**2) for a in changes)
    error = sum(jnp.sum((a.buffer - b.buffer) ** 2) for a, b in pairs)
    c_q = jnp.sqrt(error / jnp.maximum(norm, TINY))
    above = c_q > COARSE
    return {"c_q": c_q, "coarse": coarse + above.astype(jnp.int32)}
