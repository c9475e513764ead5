"""Buckets: the best ones, and as many programs as there are of them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.data import Batches, Encoded, bucket_lengths, padded_share
from splitjax.data.buckets import powers_of_two
from splitjax.metrics.compiles import Counted


def _texts(count=200, longest=60):
    lengths = np.random.default_rng(0).gamma(2.0, 8.0, count).astype(int)
    return np.clip(lengths, 1, longest)


def test_they_are_the_best_there_are():
    """Brute force over all sets of so many buckets."""
    rng = np.random.default_rng(1)
    for _ in range(6):
        lengths = rng.integers(1, 13, 9)
        ends = np.unique(lengths)
        for count in (1, 2, 3):
            found = bucket_lengths(lengths, count, multiple=1)
            assert len(found) == min(count, len(ends)) and found[-1] == ends[-1]
            sets = itertools.combinations(ends, min(count, len(ends)))
            best = min(padded_share(lengths, s) for s in sets if s[-1] == ends[-1])
            assert padded_share(lengths, found) == pytest.approx(best, abs=1e-12)


def test_more_buckets_pad_less():
    lengths = _texts()
    shares = [padded_share(lengths, bucket_lengths(lengths, k)) for k in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True)
    fixed = powers_of_two(64)
    found = bucket_lengths(lengths, len(fixed))
    assert padded_share(lengths, found) <= padded_share(lengths, fixed)
    assert all(length % 8 == 0 for length in found)


def test_as_many_programs_as_buckets():
    """Lengths without end, and four programs; without buckets one for each length."""
    lengths = _texts()
    texts = [np.ones(length, np.int32) for length in lengths]
    labels = np.zeros(len(texts), np.int32)
    buckets = bucket_lengths(lengths, 4)
    encoded = Encoded((texts,), None, labels, buckets[-1])
    step = Counted(lambda ids, mask: jnp.where(mask, ids, 0).sum())
    total = 0
    for epoch in range(2):
        for [batch] in Batches(encoded, 4, buckets=buckets).epoch(epoch):
            total += int(step(batch["ids"], batch["mask"]))
    assert step.programs == len(buckets) == 4
    assert total == 2 * lengths.sum()
    plain = Counted(lambda ids: ids.sum())
    for length in np.unique(lengths)[:6]:
        plain(jnp.ones(int(length)))
    assert plain.programs == 6


def test_bad_inputs():
    with pytest.raises(ValueError, match="0 texts"):
        bucket_lengths([], 3)
    with pytest.raises(ValueError, match="count=0"):
        bucket_lengths([3], 0)
    with pytest.raises(ValueError, match="70 tokens fits no bucket: the longest is 64"):
        padded_share([3, 70], (8, 64))
    with pytest.raises(ValueError, match="lengths are 1 or more"):
        powers_of_two(0)
    assert bucket_lengths([0, 0], 3) == (8,)
