"""Embeddings: places that padding does not shift, and rows outside of the table."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.test_util import check_grads

from splitjax.kernels import embed
from tests.kernels.ways import (
    IMPLS,
    assert_close,
    lowered,
    normal,
    stored_bytes,
    value_and_pull,
)

IDS = jnp.array([[3, 1, 1, 0, 4], [0, 0, 2, 4, 3]], jnp.int32)
MASK = jnp.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)
PLACES = jnp.array([[0, 1, 2, 2, 2], [0, 0, 0, 1, 2]])


def _tables(width=33, dtype=jnp.float32):
    return normal((5, width), 0, dtype), normal((6, width), 1, dtype)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", [1, 33, 2500])
def test_value_and_gradients(width, impl):
    """Against rows chosen by a product with one-hot vectors; padding left and right."""
    hot, spot = jax.nn.one_hot(IDS, 5), jax.nn.one_hot(PLACES, 6)

    def plain(table, positions):
        y = 2.5 * jnp.einsum("btv,vd->btd", hot, table)
        y = y + jnp.einsum("btp,pd->btd", spot, positions)
        return jnp.where(MASK[..., None], y, 0)

    ours = functools.partial(embed, IDS, mask=MASK, scale=2.5, impl=impl)
    got = value_and_pull(ours, *_tables(width))
    assert_close(got, value_and_pull(plain, *_tables(width)))


@pytest.mark.parametrize("impl", IMPLS)
def test_without_padding_and_with_places(impl):
    table, positions = _tables()
    y = embed(IDS, table, positions, impl=impl)
    assert_close(y, table[IDS] + positions[None, :5])
    y = embed(IDS, table, positions, places=PLACES + 1, impl=impl)
    assert_close(y, table[IDS] + positions[PLACES + 1])


@pytest.mark.parametrize("impl", IMPLS)
def test_dropped(impl, key):
    """The mask is read from ones, so that the gradient's must be the same."""
    ones, zeros = jnp.ones((5, 33)), jnp.zeros((6, 33))
    kept = embed(IDS, ones, zeros, key=key, rate=0.4)
    assert 0.25 < float((kept == 0).mean()) < 0.55

    def plain(table, positions):
        return kept * (table[IDS] + positions[None, :5])

    ours = functools.partial(embed, IDS, key=key, rate=0.4, impl=impl)
    got = value_and_pull(ours, *_tables())
    assert_close(got, value_and_pull(plain, *_tables()))


@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision_and_first_order(impl):
    low = _tables(dtype=jnp.bfloat16)
    ours = functools.partial(embed, IDS, mask=MASK, impl=impl)
    got = value_and_pull(ours, *low)
    assert {a.dtype.name for a in jax.tree.leaves(got)} == {"bfloat16"}
    wide = [a.astype(jnp.float32) for a in low]
    assert_close(got, value_and_pull(ours, *wide), jnp.bfloat16)
    check_grads(ours, _tables(3), order=1, modes=["rev"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("impl", IMPLS)
def test_ids_outside_of_the_table(impl):
    """As `jnp.take`: NaN, and a negative one counts from the end."""
    ids = jnp.array([[0, 5, -1, -6]])
    y = embed(ids, *_tables(3), impl=impl)
    assert jnp.isnan(y).all(-1).tolist() == [[False, True, False, True]]
    assert_close(y[0, 2], _tables(3)[0][4] + _tables(3)[1][2])


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_it_lowers_for_devices_that_are_not_here(platform):
    ours = functools.partial(embed, IDS, mask=MASK, impl="pallas")
    text = lowered(ours, *_tables(), platform=platform)
    assert text.count("custom_call @") == (0 if platform == "tpu" else 1)


def test_what_is_kept(key):
    """Ids, places, a byte of mask and the key: nothing of the width D."""
    ours = functools.partial(embed, IDS, mask=MASK, key=key, rate=0.4)
    assert stored_bytes(ours, *_tables()) == 10 * (4 + 4 + 1) + 8


def test_bad_inputs():
    table, positions = _tables()
    with pytest.raises(ValueError, match=r"integers \(B, T\): float32 \(2, 5\)"):
        embed(IDS.astype(jnp.float32), table, positions)
    with pytest.raises(ValueError, match="of one width"):
        embed(IDS, table, positions[:, :3])
    with pytest.raises(ValueError, match="table is floats, of two axes"):
        embed(IDS, table[0], positions)
    with pytest.raises(ValueError, match=r"mask is \(2, 5\), as ids: \(2, 4\)"):
        embed(IDS, table, positions, mask=MASK[:, 1:])
    with pytest.raises(ValueError, match="needs a key"):
        embed(IDS, table, positions, rate=0.1)
    with pytest.raises(ValueError, match="impl='gpu'"):
        embed(IDS, table, positions, impl="gpu")
    assert embed(IDS[:0], table, positions, impl="pallas").shape == (0, 5, 33)
