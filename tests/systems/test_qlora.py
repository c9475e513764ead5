"""QLoRA: adapters beside a quantized, cut BERT learn, and its codes stay as they are.

QLoRA (arXiv:2305.14314), at toy scale: 4 bits of a kernel in memory, gradients of the
adapters alone, in both parties.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.algorithms.split import split_learning
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.factor import factorize, materialize
from splitjax.core.gradient import value_and_grad
from splitjax.core.split import Split
from splitjax.core.stage import join
from splitjax.core.tree import flat, spec_of, where
from splitjax.factors import lora
from splitjax.factors.quantized import quantized_to
from splitjax.metrics.loss import cross_entropy
from splitjax.models import heads
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.optim.apply import apply_updates
from splitjax.runtime.local import Local
from splitjax.storage.checkpoint import Checkpoints

SIZES = dict(vocab=30, width=16, heads=2, layers=1, ffn=24, positions=8)
CHANCE = dict(init_std=0.3, dropout=0.0, attention_dropout=0.0)
STAGES = bert(BertConfig(**SIZES, **CHANCE), heads.classification(2, dropout=0.0))
CUT = cut(STAGES, after="layer_0/attention")
SPLIT = Split(CUT, (Link(chain(), chain()),), cross_entropy)
STATE = {stage.name: {} for stage in STAGES}
KERNELS = where("layer_0/.*/kernel")
TARGET = {"y": jnp.array([0, 1, 1, 0]), "n_valid": jnp.int32(4)}
STEPS = 15


@functools.cache
def start(qtype="nf4"):
    """A dense model, the same quantized and with adapters, and a batch."""
    ids = jax.random.randint(jax.random.key(2), (4, 5), 3, 30)
    x = {"ids": ids, "mask": jnp.ones((4, 5), bool)}
    params, _ = jax.jit(lambda k: join(STAGES).init(k, spec_of(x)))(jax.random.key(0))
    small = factorize(quantized_to(qtype, block=8), params, KERNELS)
    return params, lora.adapt(small, KERNELS, 2, key=jax.random.key(1), alpha=8), x


def tx():
    """AdamW, whose decay would move codes if it saw them."""
    return lora.only_adapters(optax.adamw(0.03, weight_decay=0.1))


def still(tree):
    """The bytes of all leaves but the adapters' a and b."""
    return {
        name: np.asarray(leaf).tobytes()
        for name, leaf in flat(tree).items()
        if not name.endswith(("kernel/a", "kernel/b"))
    }


@functools.cache
def program():
    update = tx().update

    @jax.jit
    def step(params, opt, ends, x):
        (loss, _), grads = SPLIT.value_and_grad(
            params, CUT.partition(STATE), ends, x, TARGET, key=jax.random.key(0)
        )
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
            updates, opt = update(grads, opt, params)
        return apply_updates(params, updates), opt, loss, grads

    return step


def run(params, opt, x, steps):
    ends = SPLIT.init_links(params, CUT.partition(STATE), spec_of(x))
    losses, grads = [], None
    for _ in range(steps):
        params, opt, loss, grads = program()(params, opt, ends, x)
        losses.append(float(loss))
    return params, opt, losses, grads


@functools.cache
def trained():
    _, params, x = start()
    parts = CUT.partition(params)
    return run(parts, tx().init(parts), x, STEPS)


def test_adapters_learn_and_every_other_bit_stays():
    _, before, _ = start()
    after, _, losses, _ = trained()
    assert losses[-1] < 0.75 * losses[0]
    whole = CUT.merge(after)
    assert still(whole) == still(before)
    old, new = flat(before), flat(whole)
    moved = {name for name in old if (old[name] != new[name]).any()}
    assert len(moved) == 2 * 6  # a and b of six kernels
    names = [name for name in old if name.endswith("base/codes")]
    assert len(names) == 6 and all(new[name].dtype == jnp.uint8 for name in names)


def test_gradients_are_those_of_the_adapters_on_the_dense_kernels_it_stands_for():
    _, _, x = start()
    params, _, _, _ = trained()
    state = CUT.partition(STATE)
    ends = SPLIT.init_links(params, state, spec_of(x))
    _, grads = SPLIT.value_and_grad(params, state, ends, x, TARGET, key=None)

    def loss(params):
        y = join(STAGES).apply(params, STATE, x, key=None, train=True)[0]
        return cross_entropy(y, TARGET)[0]

    whole = CUT.merge(params)
    dense = jax.tree.map(
        lambda n: on_dense(n) if isinstance(n, lora.Lora) else n,
        whole,
        is_leaf=lambda n: isinstance(n, lora.Lora),
    )
    want = flat(jax.grad(loss)(dense))
    found = flat(CUT.merge(grads))
    for name, leaf in found.items():
        if "base/" in name:
            assert leaf.dtype == flat(whole)[name].dtype and not np.asarray(leaf).any()
        else:
            np.testing.assert_allclose(leaf, want[name], atol=1e-5)
    again = flat(value_and_grad(loss)(whole)[1])
    assert again.keys() == found.keys()
    for name in found:
        np.testing.assert_allclose(again[name], found[name], atol=1e-5)


def on_dense(node):
    return lora.Lora(materialize(node.base), node.a, node.b, node.scale)


def test_the_optimizer_keeps_moments_of_the_adapters_alone():
    _, opt, _, _ = trained()
    _, before, _ = start()
    adapters = lora.parameters(before)[0]
    held = sum(leaf.size for leaf in jax.tree.leaves(opt) if leaf.ndim)
    assert held == 2 * adapters


def test_between_the_passes_there_are_neither_codes_nor_dense_kernels():
    _, params, x = start()
    parts, state = CUT.partition(params), CUT.partition(STATE)
    ends = SPLIT.init_links(parts, state, spec_of(x))
    seen = jax.eval_shape(
        lambda p: (
            SPLIT.forward(
                0, p, state[0], x, links=ends, key=jax.random.key(0), train=True
            ).residuals
        ),
        parts[0],
    )
    kept = [(a.shape, a.dtype) for a in jax.tree.leaves(seen.leaves)]
    base = {leaf.shape for name, leaf in flat(parts[0]).items() if "base/" in name}
    assert base == {(8, 16), (2, 16)}
    assert kept and not ({(16, 16)} | base) & {shape for shape, _ in kept}
    assert jnp.uint8 not in {dtype for _, dtype in kept}


def test_a_checkpoint_goes_on_to_the_bit(tmp_path):
    _, params, x = start()
    parts = CUT.partition(params)
    half = run(parts, tx().init(parts), x, 5)
    store = Checkpoints(tmp_path, {"qtype": "nf4"})
    store.save(5, {"params": half[0], "opt": half[1]}, {})
    blank = jax.tree.map(jnp.zeros_like, {"params": parts, "opt": tx().init(parts)})
    back, _ = store.restore(blank)
    assert still(CUT.merge(back["params"])) == still(params)
    after, _, losses, _ = run(back["params"], back["opt"], x, STEPS - 5)
    want, _, all_losses, _ = trained()
    assert losses == all_losses[5:]
    jax.tree.map(np.testing.assert_array_equal, after, want)


def test_what_it_takes_is_told():
    params, small, _ = start()
    kernels = 4 * 16 * 16 + 2 * 16 * 24
    scales, adapters = kernels // 8, 4 * 2 * 32 + 2 * 2 * 40
    rest = sum(leaf.size for leaf in jax.tree.leaves(params)) - kernels
    assert lora.parameters(small) == (adapters, rest + kernels + scales + adapters)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(small))
    assert held == kernels / 2 + 4 * (scales + adapters + rest)


@pytest.mark.parametrize("qtype", ["int8", "float8_e4m3fn"])
def test_both_parties_of_a_run_train_over_micro_batches(qtype):
    _, params, x = start(qtype)
    driver = Local(split_learning(SPLIT, tx(), micro=2), jax.random.key(2))
    state = driver.start(CUT.partition(params), CUT.partition(STATE), x)
    batch = {"x": x, "target": TARGET, "weight": jnp.float32(0.5)}
    losses = []
    for _ in range(4):
        state, metrics = driver.step(state, [batch, batch])
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    whole, _ = driver.algorithm.merge(*state[:3])
    assert still(whole) == still(params)


def test_an_optimizer_of_all_leaves_is_refused():
    _, params, x = start()
    driver = Local(split_learning(SPLIT, optax.adamw(0.1)), jax.random.key(2))
    state = driver.start(CUT.partition(params), CUT.partition(STATE), x)
    batch = {"x": x, "target": TARGET, "weight": jnp.float32(1)}
    with pytest.raises(TypeError, match="base/codes', which is uint8.*only_adapters"):
        driver.step(state, [batch])
