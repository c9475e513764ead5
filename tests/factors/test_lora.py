"""LoRA on BERT's kernels: at the start nothing changes, and only adapters learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.factor import Factor, is_factor
from splitjax.core.split import Split
from splitjax.core.stage import join
from splitjax.core.tree import path_name, spec_of, where
from splitjax.factors import lora
from splitjax.factors.low_rank import low_rank
from splitjax.metrics.loss import cross_entropy
from splitjax.models import heads
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig

SIZES = dict(vocab=30, width=8, heads=2, layers=1, ffn=12, positions=8)
CHANCE = dict(init_std=0.3, dropout=0.0, attention_dropout=0.0)
STAGES = bert(BertConfig(**SIZES, **CHANCE), heads.classification(2, dropout=0.0))
KERNELS = where("layer_0/(attention/(query|value)|ffn/wi)/kernel")
TARGET = {"y": jnp.array([0, 1, 1, 0]), "n_valid": jnp.int32(4)}
STATE = {stage.name: {} for stage in STAGES}


@functools.cache
def start():
    """A fresh model, the same with adapters, and a batch."""
    ids = jax.random.randint(jax.random.key(2), (4, 5), 3, 30)
    x = {"ids": ids, "mask": jnp.ones((4, 5), bool)}
    params, _ = jax.jit(lambda k: join(STAGES).init(k, spec_of(x)))(jax.random.key(0))
    return params, lora.adapt(params, KERNELS, 2, key=jax.random.key(1), alpha=8), x


@jax.jit
def loss_and_grads(params, x):
    def loss(params):
        y = join(STAGES).apply(params, STATE, x, key=None, train=True)[0]
        return cross_entropy(y, TARGET)[0]

    return jax.value_and_grad(loss)(params)


@functools.cache
def trained():
    """After 20 steps of AdamW, whose decay would move a base with zero gradients."""
    _, params, x = start()
    tx = lora.only_adapters(
        optax.adamw(0.05, weight_decay=0.1), also=where("head/.*|classifier/.*")
    )
    state, losses, update = tx.init(params), [], jax.jit(tx.update)
    for _ in range(20):
        value, grads = loss_and_grads(params, x)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
            updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    return params, state, losses


def named(params):
    found = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path): np.asarray(leaf) for path, leaf in found}


def test_at_the_start_it_is_the_same_function():
    params, adapted, x = start()
    want, _ = loss_and_grads(params, x)
    assert float(loss_and_grads(adapted, x)[0]) == pytest.approx(float(want), abs=1e-6)
    assert jax.tree.structure(lora.merge(adapted)) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, lora.merge(adapted), params)


def test_each_kernel_gets_numbers_of_its_own_and_of_its_path():
    params, adapted, _ = start()
    layer = adapted["layer_0/attention"]
    assert bool((layer["query"]["kernel"].a != layer["value"]["kernel"].a).all())
    alone = lora.adapt(
        params, where(".*/query/kernel"), 2, key=jax.random.key(1), alpha=8
    )
    query = alone["layer_0/attention"]["query"]["kernel"]
    np.testing.assert_array_equal(query.a, layer["query"]["kernel"].a)
    assert not is_factor(alone["layer_0/attention"]["value"]["kernel"])


def test_a_is_as_wide_as_its_input_asks(key):
    a = lora.fit(jnp.ones((400, 8)), key, rank=8).a
    assert float(a.std()) == pytest.approx(400**-0.5, rel=0.1)


def test_only_adapters_and_what_is_named_move():
    _, before, _ = start()
    after, _, losses = trained()
    assert losses[-1] < 0.5 * losses[0]
    old, new = named(before), named(after)
    moved = {name for name in old if (old[name] != new[name]).any()}
    adapters = {n for n in old if n.endswith(("kernel/a", "kernel/b"))}
    fresh = {n for n in old if n.startswith(("head/", "classifier/"))}
    assert len(adapters) == 6 and fresh
    assert moved == adapters | fresh


def test_the_optimizer_keeps_moments_of_what_it_trains_alone():
    _, state, _ = trained()
    shapes = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert (8, 12) not in shapes  # a base of the feed-forward block
    assert shapes.count((8, 2)) >= 2 * 3


def test_merged_it_is_the_same_function():
    params, _, x = trained()[0], None, start()[2]
    merged = lora.merge(params)
    assert not any(map(is_factor, jax.tree.leaves(merged, is_leaf=is_factor)))
    want = loss_and_grads(params, x)[0]
    assert float(loss_and_grads(merged, x)[0]) == pytest.approx(float(want), abs=1e-5)
    kernel = params["layer_0/ffn"]["wi"]["kernel"]
    assert kernel.scale == 4.0
    np.testing.assert_allclose(
        merged["layer_0/ffn"]["wi"]["kernel"],
        kernel.base + 4.0 * kernel.a @ kernel.b,
        atol=1e-6,
    )


def test_at_a_cut_the_parties_get_the_gradients_of_the_whole():
    _, _, x = start()
    params = trained()[0]
    made = cut(STAGES, after="layer_0/attention")
    split = Split(made, (Link(chain(), chain()),), cross_entropy)
    parts, state = made.partition(params), made.partition(STATE)
    ends = split.init_links(parts, state, spec_of(x))
    run = jax.jit(
        lambda p, s, e: split.value_and_grad(p, s, e, x, TARGET, key=jax.random.key(0))
    )
    (value, _), grads = run(parts, state, ends)
    want, whole = loss_and_grads(params, x)
    assert float(value) == pytest.approx(float(want), abs=1e-6)
    got = made.merge(grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, whole)
    edge = made.partition(got)[0]["layer_0/attention"]["query"]["kernel"]
    assert not np.asarray(edge.base).any() and np.asarray(edge.b).any()


def test_a_factor_may_be_the_base(key):
    kernel = jax.random.normal(key, (6, 4))
    low = low_rank(2)(kernel)
    one = lora.fit(low, key, rank=1)
    x = jax.random.normal(key, (5, 6))
    np.testing.assert_allclose(one.dot(x), low.dot(x), atol=1e-6)
    grads = jax.grad(lambda f: one_square(f, x))(one)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads.base))
    assert np.asarray(grads.b).any()
    merged = lora.merge({"w": one, "other": low})
    assert not is_factor(merged["w"]) and isinstance(merged["other"], Factor)


def test_its_base_is_not_held_twice_between_the_passes():
    """What the way forward keeps holds no kernel: they are all among the parameters."""
    _, _, x = start()
    made = cut(STAGES, after="layer_0/attention")
    split = Split(made, (Link(chain(), chain()),), cross_entropy)
    parts, state = made.partition(start()[1]), made.partition(STATE)
    ends = split.init_links(parts, state, spec_of(x))
    how = {"links": ends, "key": None, "train": True}
    seen = jax.eval_shape(
        lambda p: split.forward(0, p, state[0], x, **how).residuals, parts[0]
    )
    shapes = [leaf.shape for leaf in jax.tree.leaves(seen.leaves)]
    assert parts[0]["layer_0/attention"]["query"]["kernel"].base.shape == (8, 8)
    assert shapes and (8, 8) not in shapes


def one_square(factor, x):
    return jnp.square(factor.dot(x)).sum()


def test_how_many_numbers_are_trained():
    _, adapted, _ = start()
    count, total = lora.parameters(adapted)
    assert count == 2 * (2 * (8 + 8)) + 2 * (8 + 12)
    assert total == count + sum(a.size for a in jax.tree.leaves(start()[0]))


@pytest.mark.parametrize(
    ("kernel", "options", "words"),
    [
        (jnp.ones((4, 3)), {"rank": 0}, "from 1 to 3"),
        (jnp.ones((4, 3)), {"rank": 4}, "rank 4"),
        (jnp.ones((4, 3)), {"rank": 1, "alpha": 0.0}, "alpha 0.0"),
        (jnp.ones(4), {"rank": 1}, "matrices"),
    ],
)
def test_bad_ranks_scales_and_leaves_are_told(kernel, options, words, key):
    with pytest.raises(ValueError, match=words):
        lora.fit(kernel, key, **options)


def test_bad_trees_are_told(key):
    with pytest.raises(TypeError, match="int32"):
        lora.fit(jnp.ones((4, 3), jnp.int32), key, rank=1)
    params = {"kernel": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match="no LoRA adapter"):
        lora.only_adapters(optax.sgd(0.1)).init(params)
    with pytest.raises(ValueError, match="matches no leaf"):
        lora.adapt(params, where("bias"), 1, key=key)
