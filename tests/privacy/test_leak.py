import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import with_loss
from splitjax.metrics.loss import cross_entropy
from splitjax.models.mlp import mlp
from splitjax.privacy import distance_correlation, guarded, leak_loss, sign_entropy
from splitjax.privacy.rows import aligned, matrix

dcor, entropy_of = jax.jit(distance_correlation), jax.jit(sign_entropy)
X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
TARGET = {"y": jnp.arange(16) % 3, "n_valid": jnp.int32(16)}


def split_of(alpha, codec=None):
    made = cut(mlp([8, 5, 3]), after="dense_1")
    if alpha is not None:
        made = guarded(made, leak_loss(alpha))
    return Split(made, (Link(codec or chain(), chain()),), cross_entropy)


def gradients(split, key):
    params, state = split.init(key, X)
    links = split.init_links(params, state, X)
    run = jax.jit(lambda p: split.value_and_grad(p, state, links, X, TARGET))
    (loss, _), grads = run(params)
    return params, state, loss, grads


def test_the_edge_pays_for_what_it_tells_and_the_cloud_does_not(key):
    params, state, loss, (edge, cloud) = gradients(split_of(0.7), key)
    _, _, plain_loss, (plain_edge, plain_cloud) = gradients(split_of(None), key)

    def leak(part):
        first = split_of(None).cut.segments[0]
        z, _, _ = first.apply(part, state[0], X, key=None, train=True)
        return 0.7 * distance_correlation(X, z)

    own, slope = jax.jit(jax.value_and_grad(leak))(params[0])
    added = jax.tree.map(np.add, plain_edge, slope)
    np.testing.assert_allclose(loss, plain_loss + own, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(edge), jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(cloud), jax.tree.leaves(plain_cloud), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_needs_no_traffic(key):
    for alpha in (None, 1.0):
        split = split_of(alpha)
        params, state = jax.eval_shape(split.init, key, X)
        links = jax.eval_shape(split.init_links, params, state, X)

        def sent(params, state, links, split=split):
            return split.forward(0, params[0], state[0], X, links=links, key=None).out

        out = jax.eval_shape(sent, params, state, links)
        assert [leaf.shape for leaf in jax.tree.leaves(out)] == [(16, 5)]


def test_it_is_a_stage_loss_too():
    stage = with_loss(mlp([4])[0], leak_loss(2.0))
    params, state = stage.init(jax.random.key(0), X)
    run = jax.jit(lambda p: stage.apply(p, state, X, key=None, train=True))
    y, _, aux = run(params)
    np.testing.assert_allclose(aux["loss"], 2 * dcor(X, y), rtol=1e-5)


def test_padding_is_left_out(key):
    mask = jnp.arange(16) < 10
    x = {"h": jnp.where(mask[:, None], X, jnp.nan), "mask": mask}
    y = {"h": jnp.asarray(X[:, ::-1]), "mask": mask}
    np.testing.assert_allclose(jax.jit(leak_loss(1.0))(x, y), 1.0, rtol=1e-5)


def test_a_huge_weight_collapses_the_code_and_the_entropy_tells(key):
    split = split_of(1e4)
    params, state = split.init(key, X)
    links = split.init_links(params, state, X)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, opt):
        _, grads = split.value_and_grad(params, state, links, X, TARGET)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt

    @jax.jit
    def entropy(params):
        visit = split.forward(0, params[0], state[0], X, links=links, key=None)
        return sign_entropy(visit.out)

    opt, before = tx.init(params), float(entropy(params))
    for _ in range(150):
        params, opt = step(params, opt)
    assert before > 0.5
    assert entropy(params) < 0.25 * before


def test_sign_entropy_of_known_codes():
    half = jnp.tile(jnp.array([1.0, -1.0]), 8)[:, None]
    assert float(entropy_of(half)) == 1.0
    quarter = (jnp.arange(16) % 4 == 0).astype(jnp.float32)[:, None]
    np.testing.assert_allclose(entropy_of(quarter), 0.811278, rtol=1e-5)
    assert float(entropy_of(jnp.full((16, 1), 0.1))) == 0.0
    mask = jnp.arange(16) % 2 == 0
    assert float(entropy_of(half, mask=mask)) == 0.0


def test_bad_weights_ids_and_single_rows_are_refused():
    for alpha in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="0 or more, finite"):
            leak_loss(alpha)
    with pytest.raises(ValueError, match="2 or more"):
        leak_loss(1.0)(X[:1], X[:1])
    with pytest.raises(ValueError, match="names, not quantities"):
        leak_loss(1.0)({"ids": jnp.arange(4), "mask": jnp.ones(4, bool)}, X[:4])


def test_rows_are_examples_or_tokens():
    h = {"h": jnp.ones((2, 3, 4)), "mask": jnp.ones((2, 3), bool)}
    (x, y), mask = aligned(jnp.zeros((2, 3, 2)), h)
    assert (x.shape, y.shape, mask.shape) == ((6, 2), (6, 4), (6,))
    assert matrix(np.ones((2, 4, 4, 1), np.uint8), 1).shape == (2, 16)


def test_behind_a_stage_its_output_is_what_must_not_leak(key):
    made = cut(mlp([8, 5, 3]), after="dense_1")
    seen = []
    whole = guarded(made, lambda x, y: seen.append((x, y)) or x.sum(), behind="dense_0")
    params, state = made.model.init(key, X)
    parts = made.partition(params)[0], made.partition(state)[0]
    y, new, aux = whole.segments[0].apply(*parts, X, key=None, train=True)
    [(x, z)] = seen
    assert x.shape == (16, 8) and z is y and set(new) == {"dense_0", "dense_1"}
    assert aux["loss"] == x.sum()
    plain = made.segments[0].apply(*parts, X, key=None, train=True)[0]
    np.testing.assert_array_equal(y, plain)
    for stage in ("dense_1", "head", "nothing"):
        with pytest.raises(ValueError, match=f"between '{stage}' and the cut"):
            guarded(made, leak_loss(1.0), behind=stage)


def test_of_many_rows_some_are_compared():
    counts = []

    def metric(x, z, mask):
        counts.append((len(x), len(z), len(mask)))
        return x.sum()

    h = {"h": jnp.ones((30, 10, 2)), "mask": jnp.ones((30, 10), bool)}
    leak_loss(1.0, metric=metric, most=100)(h, h)
    assert counts == [(100, 100, 100)]
