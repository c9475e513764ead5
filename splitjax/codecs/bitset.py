"""Sets of small whole numbers as words of 32 bits."""

import jax
import jax.numpy as jnp

WORD = 32


def words_of(count: int) -> int:
    """Words that hold one bit for each of `count` numbers.

    Example:
      >>> words_of(32), words_of(33)
      (1, 2)
    """
    return -(-count // WORD)


def pack_mask(mask: jax.Array) -> jax.Array:
    """The set of the places where a mask is true.

    Args:
      mask: bool `[rows, n]`.

    Returns:
      uint32 `[rows, words_of(n)]`; bit i of word w is place 32 w + i.

    Example:
      >>> import jax.numpy as jnp
      >>> pack_mask(jnp.array([[True, False, True]])).tolist()
      [[5]]
    """
    rows, n = mask.shape
    mask = jnp.pad(mask, ((0, 0), (0, words_of(n) * WORD - n)))
    bit = jnp.uint32(1) << jax.lax.iota(jnp.uint32, WORD)
    spread = mask.reshape(rows, words_of(n), WORD)
    return jnp.sum(jnp.where(spread, bit[None, None], jnp.uint32(0)), -1)


def from_places(places: jax.Array, n: int) -> jax.Array:
    """The set that holds the given places.

    Args:
      places: int32 `[rows, k]`, increasing in each row and below n.
      n: places that there are.

    Returns:
      uint32 `[rows, words_of(n)]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from_places(jnp.array([[0, 2]]), 3).tolist()
      [[5]]
    """
    row = jnp.arange(places.shape[0])[:, None]
    mask = jnp.zeros((places.shape[0], n), bool)
    mask = mask.at[row, places].set(
        True, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True
    )
    return pack_mask(mask)


def places(words: jax.Array, k: int) -> jax.Array:
    """The k least numbers of a set, in order.

    A binary search over the running count of the words finds the word of each, and one
    over the counts of its halves the bit.

    Args:
      words: uint32 `[rows, words]` with at least k bits set in each row.
      k: how many.

    Returns:
      int32 `[rows, k]`.

    Example:
      >>> import jax.numpy as jnp
      >>> places(jnp.array([[5, 1]], jnp.uint32), 3).tolist()
      [[0, 2, 32]]
    """
    rows, count = words.shape
    size = jax.lax.population_count(words).astype(jnp.int32)
    through = jnp.cumsum(size, 1)
    slot = jnp.broadcast_to(jax.lax.iota(jnp.int32, k)[None], (rows, k))
    word = jnp.zeros((rows, k), jnp.int32)
    top = 2 ** (count.bit_length() - 1)

    # Loops, as XLA would fuse unrolled steps into what reads the result.
    def step(i, word):
        probe = word + (top >> i)
        passed = _take(through, jnp.minimum(probe, count) - 1) <= slot
        return jnp.where((probe <= count) & passed, probe, word)

    # The number of words whose running count is at most the slot.
    word = jnp.zeros((rows, k), jnp.int32)
    word = jax.lax.fori_loop(0, count.bit_length(), step, word)
    word = jnp.minimum(word, count - 1)
    rank = slot - (_take(through, word) - _take(size, word))
    return word * WORD + _nth(_take(words, word), rank)


def first(words: jax.Array, count: jax.Array) -> jax.Array:
    """What is left of a set when only its `count` least numbers stay.

    Args:
      words: uint32 `[rows, words]`.
      count: int32 `[rows]`.

    Example:
      >>> import jax.numpy as jnp
      >>> first(jnp.array([[7, 1]], jnp.uint32), jnp.array([2])).tolist()
      [[3, 0]]
    """
    size = jax.lax.population_count(words).astype(jnp.int32)
    stay = count[:, None] - (jnp.cumsum(size, 1) - size)
    below = (jnp.uint32(1) << _nth(words, jnp.maximum(stay, 0)).astype(jnp.uint32)) - 1
    some = jnp.where(stay > 0, words & below, jnp.uint32(0))
    return jnp.where(stay >= size, words, some)


def _nth(words: jax.Array, rank: jax.Array) -> jax.Array:
    """The place of the bit that has `rank` set bits below it in its word."""

    def step(i, at):
        words, rank, place = at
        half = jnp.asarray(16 >> i, jnp.int32)
        low = words & ((1 << half) - 1).astype(jnp.uint32)
        below = jax.lax.population_count(low).astype(jnp.int32)
        up = rank >= below
        words = jnp.where(up, words >> half.astype(jnp.uint32), low)
        rank = jnp.where(up, rank - below, rank)
        return words, rank, jnp.where(up, place + half, place)

    start = words, rank, jnp.zeros(words.shape, jnp.int32)
    return jax.lax.fori_loop(0, 5, step, start)[2]


def _take(rows: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(rows, index, axis=1, mode="promise_in_bounds")
