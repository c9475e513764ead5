"""What is there at once on the way back."""

import jax
import jax.numpy as jnp
import pytest

from splitjax.metrics.way_back import way_back

WIDE, NARROW = 64, 4  # floats
W = [jax.ShapeDtypeStruct((WIDE,), "f4") for _ in range(3)]
X = jax.ShapeDtypeStruct((WIDE,), "f4")
SIZE = 4 * WIDE


def chain(ws, x, part=lambda f: f):
    """Each product keeps its input; the first one's is the batch."""
    for w in ws:
        x = part(lambda x, w: jnp.sin(x * w))(x, w)
    return x.sum()


def test_what_a_gradient_needed_is_gone_when_the_next_one_comes():
    """Three sines keep their cosines, two products their inputs: the start is fullest.

    Each gradient takes the place of a cosine. Where gradients are large, the end is.
    """
    kept = (3 + 2) * SIZE
    assert way_back(chain, W, X, [SIZE] * 3) == (kept, 0, kept)
    assert way_back(chain, W, X, [0] * 3) == (kept, 0, kept)
    assert way_back(chain, W, X, [9 * SIZE] * 3) == (kept, 0, 27 * SIZE)


def test_parts_that_are_computed_again_are_there_from_the_start():
    def loss(ws, x):
        return chain(ws, x, jax.checkpoint)

    kept, again = 2 * SIZE, 3 * SIZE
    assert way_back(loss, W, X, [0] * 3) == (kept, again, kept + again)
    assert way_back(loss, W, X, [9 * SIZE] * 3) == (kept, again, 27 * SIZE + SIZE)


@pytest.mark.parametrize("part", [lambda f: f, jax.checkpoint], ids=["kept", "again"])
def test_a_loop_holds_everything_until_its_end(part):
    def loss(w, x):
        turn = part(lambda x, w: (jnp.sin(jnp.sin(x * w)), ()))
        return jax.lax.scan(turn, x, w)[0].sum()

    w = jax.ShapeDtypeStruct((5, WIDE), "f4")
    found = way_back(loss, w, X, [5 * SIZE])
    assert found.fullest == found.kept + found.again + 5 * SIZE
    assert bool(found.again) == (part is jax.checkpoint)


def test_whole_numbers_and_what_is_read_twice():
    """A table that is read by numbers, and an array that two gradients need."""

    def loss(p, n):
        y = jnp.tanh(p["table"][n])
        return (y * y).sum()

    p = {"count": jax.ShapeDtypeStruct((), "i4"), "table": W[0]}
    n = jax.ShapeDtypeStruct((NARROW,), "i4")
    kept = 3 * 4 * NARROW  # y, 1 - y^2, and where the table was read
    assert way_back(loss, p, n, [1]) == (kept, 0, kept)
    assert way_back(loss, p, n, [SIZE]) == (kept, 0, SIZE + 4 * NARROW)
