"""Which lengths to pad texts to: few, so that few programs are compiled."""

from collections.abc import Sequence

import numpy as np


def powers_of_two(longest: int, *, least: int = 8) -> tuple[int, ...]:
    """`least`, its double, and so on, up to `longest` itself.

    Raises:
      ValueError: for lengths below 1.

    Example:
      >>> powers_of_two(100)
      (8, 16, 32, 64, 100)
    """
    if longest < 1 or least < 1:
        raise ValueError(f"powers_of_two({longest}, {least=}): lengths are 1 or more")
    made = []
    while least < longest:
        made.append(least)
        least *= 2
    return (*made, longest)


def bucket_lengths(
    lengths: Sequence[int] | np.ndarray, count: int, *, multiple: int = 8
) -> tuple[int, ...]:
    """The lengths, as many as allowed, that leave the fewest tokens of padding.

    Each text is padded to the least bucket that it fits. Which buckets are best is
    found exactly, by dynamic programming over the multiples that occur:
    `waste[k, j] = min_i waste[k - 1, i] + padding of texts longer than i to j`.

    Args:
      lengths: of the texts, in tokens.
      count: buckets at most: as many programs are compiled.
      multiple: of which every bucket is one; 1 for any length.

    Returns:
      Rising; fewer than `count` where no more are of use. The last one fits all.

    Raises:
      ValueError: without texts, for lengths below 0, and numbers below 1.

    Example:
      >>> bucket_lengths([3, 3, 3, 30, 31, 100], 3, multiple=1)
      (3, 31, 100)
      >>> bucket_lengths([3, 3, 3, 30, 31, 100], 2)
      (32, 104)

    Reference:
      the dynamic program is Bellman's, as for optimal one-dimensional clusters: H.
      Wang, M. Song, Ckmeans.1d.dp, 2011, The R Journal 3(2), 29-33.
    """
    lengths = np.asarray(lengths)
    if not lengths.size or lengths.min() < 0 or count < 1 or multiple < 1:
        least = lengths.min() if lengths.size else "none"
        raise ValueError(
            f"bucket_lengths({lengths.size} texts, the shortest {least}, {count=}, "
            f"{multiple=}): expected texts, and numbers of 1 or more"
        )
    steps = np.maximum(-(-lengths // multiple), 1)
    ends, texts = np.unique(steps, return_counts=True)
    before = np.concatenate([[0], np.cumsum(texts)])
    # cost[i, j]: tokens of the texts of ends i to j - 1, padded to the last of them.
    cost = (before[None, 1:] - before[:-1, None]) * ends[None]
    best = cost[0].astype(float)
    choices = []
    for _ in range(1, min(count, len(ends))):
        total = np.full((len(ends), len(ends)), np.inf)
        for j in range(1, len(ends)):
            total[1 : j + 1, j] = best[:j] + cost[1 : j + 1, j]
        choices.append(total.argmin(0))
        best = total.min(0)
    j = len(ends) - 1
    made = [int(ends[j]) * multiple]
    for choice in reversed(choices):
        j = int(choice[j]) - 1
        made.append(int(ends[j]) * multiple)
    return tuple(reversed(made))


def padded_share(lengths: Sequence[int] | np.ndarray, buckets: Sequence[int]) -> float:
    """The part of all tokens that is padding, each text in its own bucket: 0 to 1.

    Raises:
      ValueError: for a text longer than every bucket.

    Example:
      >>> padded_share([6, 8, 10], (8, 16))
      0.25
    """
    lengths, ends = np.asarray(lengths), np.sort(np.asarray(buckets))
    places = np.searchsorted(ends, lengths)
    if (places == len(ends)).any():
        raise ValueError(
            f"a text of {lengths.max()} tokens fits no bucket: the longest is "
            f"{ends[-1] if len(ends) else 'none'}"
        )
    whole = ends[places].sum()
    return float(1 - lengths.sum() / whole) if whole else 0.0
