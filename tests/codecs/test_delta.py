"""A memory per example: whose rows, how they are kept, and what it refuses.

What the paper claims of it is in tests/systems/test_aq_sgd.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import (
    Context,
    Sized,
    c3,
    cast,
    chain,
    delta,
    quantize,
    ragged,
)
from splitjax.codecs.remember import FORMATS, format_of
from splitjax.core.memory import blank
from splitjax.core.tree import spec_of
from splitjax.runtime import frame
from splitjax.storage.row_file import Row
from tests.doubles import Ends

INNER = quantize(4, axis="channel", power_of_two=True)
X = np.random.default_rng(3).normal(size=(3, 2, 6)).astype(np.float32)
IDS = [4, 1, 6]


def packed(x, lengths):
    """A batch of texts as `ragged` packs it."""
    mask = jnp.arange(x.shape[1])[None] < jnp.asarray(lengths)[:, None]
    h = jnp.where(mask[..., None], x, 0.0)
    return ragged().encode({"h": h, "mask": mask}, (), None)[0]


def unpacked(message):
    return np.asarray(ragged().decode(message, ())[0]["h"])


def whole_rows(ends):
    return int(ends.message.whole[0].used)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_keeps_what_it_can(name):
    kind = format_of(name)
    x = jnp.concatenate([jnp.asarray(X), jnp.zeros((1, 2, 6))])
    kept = kind.keep(x)
    y = kind.recall(kept, 6)
    bound = {"f32": 0.0, "f16": 2.0**-10, "int8": 2.0**-6, "int4": 2.0**-2}[name]
    assert float(jnp.max(jnp.abs(x - y))) <= bound * float(jnp.max(jnp.abs(x)))
    again = kind.keep(y)
    jax.tree.map(np.testing.assert_array_equal, kept, again)
    assert not any(np.asarray(a)[-1].any() for a in kept)  # as a store pads
    sizes = {"f32": 4, "f16": 2, "int8": 1 + 1 / 6, "int4": 0.5 + 1 / 6}
    assert sum(a.nbytes for a in kept) == round(sizes[name] * x.size)


def test_an_example_is_found_again_in_another_order_and_padding():
    ends = Ends(delta(INNER), 8)
    x = np.concatenate([X, 0 * X[:, :1]], 1)
    ends.send(packed(X, [2, 1, 2]), IDS)
    assert whole_rows(ends) == 5
    y = ends.send(packed(x[::-1], [2, 1, 2]), IDS[::-1])
    assert whole_rows(ends) == 0 and ends.equal()
    np.testing.assert_array_equal(unpacked(y)[0, :2], X[2])
    assert not unpacked(y)[1, 1:].any()


def test_another_length_of_a_known_text_is_sent_whole():
    ends = Ends(delta(INNER), 8)
    ends.send(packed(X, [2, 1, 2]), IDS)
    y = ends.send(packed(X, [2, 2, 2]), IDS)
    assert whole_rows(ends) == 2 and ends.equal()
    np.testing.assert_array_equal(unpacked(y), X)


def test_new_and_known_examples_in_one_batch():
    ends = Ends(delta(INNER), 8)
    ends.send(X, [4, 1, 6])
    y = ends.send(X[::-1], [6, 5, 4])
    np.testing.assert_array_equal(y, X[::-1])
    assert whole_rows(ends) == 1 and list(ends.rx) == [1, 4, 5, 6]


def test_nobodys_rows_are_not_sent():
    ends = Ends(delta(INNER), 8)
    y = np.asarray(ends.send(X, [4, -1, -1]))
    np.testing.assert_array_equal(y, [X[0], 0 * X[0], 0 * X[0]])
    assert whole_rows(ends) == 1 and list(ends.tx) == [4]
    small = frame.payload_bytes(ends.message)
    ends.send(X, [5, 6, 7])
    assert frame.payload_bytes(ends.message) == small + 2 * X[0].nbytes


def test_evaluation_touches_no_memory():
    for way, exact in (("full", True), ("quantized", False)):
        codec = delta(INNER, evaluation=way)
        state = blank(codec.init(spec_of(X)))  # as it is between ticks
        message, after = codec.encode(jnp.asarray(X), state, Context(train=False))
        y, _ = codec.decode(message, state)
        assert (np.asarray(y) == X).all() == exact
        assert jax.tree.structure(after) == jax.tree.structure(state)


def test_not_finite_changes_nothing_and_is_counted():
    ends = Ends(delta(INNER), 8)
    spoilt = X.copy()
    spoilt[0, 0, :2] = np.nan, np.inf
    y = np.asarray(ends.send(spoilt, IDS))
    assert y[0, 0, :2].tolist() == [0.0, 0.0]
    ends.send(X, IDS)
    before = np.asarray(ends.send(X, IDS))
    y = np.asarray(ends.send(spoilt, IDS))
    assert np.abs(y[0, 0, :2] - before[0, 0, :2]).max() < 0.1
    assert np.isfinite(y).all() and int(ends.states["tx"]["nonfinite"]) == 4


def test_a_constant_and_a_zero_channel_are_exact():
    ends = Ends(
        delta(quantize(2, axis="channel", power_of_two=True), first="quantized"), 8
    )
    x = np.stack([np.zeros((3, 4)), np.full((3, 4), 0.5)], -1).astype(np.float32)
    for _ in range(3):
        y = ends.send(x, IDS)
    assert not np.asarray(y)[..., 0].any()
    assert np.abs(np.asarray(y)[..., 1] - 0.5).max() < 0.05


def test_above_65504_an_f16_memory_saturates_and_nothing_overflows():
    ends = Ends(delta(quantize(8, power_of_two=True), memory="f16", first="half"), 8)
    x = np.full_like(X, 1e5)
    errors = [np.abs(np.asarray(ends.send(x, IDS)) - x).max() for _ in range(2)]
    assert errors[0] == 1e5 - 65504 and errors[1] < 300 and ends.equal()


def test_lost_updates_are_found_by_digest_and_sent_whole_again():
    """One end is restored from an older copy; then a row is damaged."""
    ends = Ends(delta(INNER, check=1), 8)
    ends.send(X, IDS)
    older = {n: ends.rx[n] for n in ends.rx}
    ends.send(X * 1.5, IDS)
    ends.rx._new.update({4: older[4]})
    row = ends.rx[1]
    ends.rx._new[1] = Row(row.data ^ (np.arange(row.data.size) == 2), *row[1:])
    seen = []
    put = ends.rx.put
    ends.rx.put = lambda *args: seen.append(put(*args)) or seen[-1]
    ends.send(X * 2, IDS)
    assert seen == [[4, 1]] and int(ends.states["rx"]["parted"]) == 2
    ends.tx.forget(seen[0])  # as the driver tells the sender
    y = ends.send(X * 2, IDS)
    np.testing.assert_array_equal(y[:2], 2 * X[:2])
    assert ends.equal() and seen[1] == []


def test_digests_cost_four_bytes_at_every_third_visit():
    ends = Ends(delta(INNER, check=3), 8)
    sizes = []
    for _ in range(8):
        ends.send(X, IDS)
        sizes.append(int(ends.message.digests.used))
    assert sizes == [0, 3, 0, 0, 3, 0, 0, 3]


def test_without_ids_or_memory_it_says_what_is_missing():
    codec = delta(INNER)
    state = codec.init(spec_of(X))
    with pytest.raises(ValueError, match="whose rows.*Context\\(ids="):
        codec.encode(jnp.asarray(X), state, Context())
    with pytest.raises(ValueError, match="taken out, and not filled in"):
        codec.encode(jnp.asarray(X), blank(state), Context(ids=jnp.arange(3)))
    for ids in (jnp.arange(2), jnp.arange(6)):  # another micro-batch's
        with pytest.raises(ValueError, match=r"ids \(.*\) for 3 examples"):
            codec.encode(jnp.asarray(X), state, Context(ids=ids))


def test_groups_of_c3_are_no_examples():
    codec = chain(c3(2), delta(INNER))
    ctx = Context(ids=jnp.arange(3, dtype=jnp.int32))
    with pytest.raises(ValueError, match=r"ids \(3,\) for 2 examples"):
        codec.encode(jnp.asarray(X), codec.init(spec_of(X)), ctx)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: delta(ragged()), "is smooth"),
        (lambda: delta(dataclasses.replace(INNER, exact=False)), "memories would part"),
        (lambda: delta(INNER, first="twice"), "did you mean|There are"),
        (lambda: delta(INNER, memory="f8"), "no format 'f8'"),
        (lambda: delta(INNER, check=-1), "check=-1"),
        (lambda: delta(quantize(1)), "bits must be 2 to 8"),
        (lambda: delta(INNER).init({"a": jnp.ones((2, 3)), "b": jnp.ones(4)}), "B=2"),
        (lambda: delta(INNER).init(Sized(jnp.ones((4, 2)), jnp.int32(2))), "ragged"),
        (lambda: chain(delta(INNER), ragged()), "smooth ones first"),
    ],
)
def test_what_cannot_work_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_other_exact_codecs_will_do():
    for inner in (cast("bf16"), quantize(5)):
        ends = Ends(delta(inner, first="quantized"), 8)
        errors = [np.abs(np.asarray(ends.send(X, IDS)) - X).max() for _ in range(3)]
        assert ends.equal() and errors[2] <= errors[0]
