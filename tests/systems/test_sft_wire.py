"""SFT: what crosses the link, counted on real frames, and the dense model it leaves."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from splitjax.algorithms.split import split_learning
from splitjax.codecs import ragged
from splitjax.core.codec import Link, chain, message_spec, wire_bytes
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.factors.low_rank import merge, squeeze_params
from splitjax.metrics.loss import cross_entropy
from splitjax.models import heads
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.export import save
from splitjax.models.folder import read_config
from splitjax.models.pretrained import load
from splitjax.models.squeeze import Squeeze
from splitjax.runtime import frame
from splitjax.runtime.local import Local

CONFIG = BertConfig(
    vocab=9000, width=16, heads=4, layers=2, ffn=24, positions=20, init_std=0.3
)
B, T, RANK = 4, 7, 3
LAYERS = range(CONFIG.layers)
LINK = Link(ragged(), chain())  # lengths cross instead of the mask
LABELS = np.array([1, 0, 1, 1], np.int32)


def model(config=CONFIG, **kwargs):
    return bert(config, heads.classification(2), **kwargs)


@functools.cache
def dense():
    """Parameters, and a batch whose ids are no other small number."""
    ids = 7000 + jnp.arange(B * T, dtype=jnp.int32).reshape(B, T) * 13
    x = {"ids": ids, "mask": jnp.ones((B, T), bool)}
    init = join(model()).init
    return jax.jit(lambda key: init(key, spec_of(x)))(jax.random.key(0))[0], x


@functools.cache
def trained(layer, *, ushape=False, skip=None):
    """Two steps over frames: trained parameters, and each message with its bytes.

    Operation by operation: five compiled runs would take ten times as long.
    """
    params, x = dense()
    params = dict(params)
    edge, cloud = squeeze_params(params.pop(f"layer_{layer}/ffn"), RANK)
    params |= {f"layer_{layer}/squeeze": edge, f"layer_{layer}/expand": cloud}
    stages = model(squeeze={layer: Squeeze(RANK, skip=skip)})
    after = (f"layer_{layer}/squeeze", "pool")[: 1 + ushape]
    links = (LINK, Link(chain(), chain()))[: 1 + ushape]
    split = Split(cut(stages, after=after), links, cross_entropy)
    algorithm = split_learning(split, optax.sgd(0.1))
    driver = Local(algorithm, jax.random.key(1), jit=False)
    state = {stage.name: {} for stage in stages}
    run = driver.start(split.cut.partition(params), split.cut.partition(state), x)
    target = {"y": LABELS, "n_valid": np.int32(B)}
    sent, write = [], frame.write

    def spy(schema, tree, **header):
        data = write(schema, tree, **header)
        sent.append((tree, data))
        return data

    with mock.patch.object(frame, "write", spy):
        for _ in range(2):
            batch = {"x": x, "target": target, "weight": np.float32(1)}
            run, _ = driver.step(run, [batch])
    assert sum(len(data) for _, data in sent) == sum(
        row["bytes"] for row in driver.meter.rows()
    )
    return driver.algorithm.merge(*run[:3])[0], sent


def forward(stages, params, x):
    whole = join(stages)
    state = {stage.name: {} for stage in stages}
    run = jax.jit(lambda p, x: whole.apply(p, state, x, key=None, train=False)[0])
    return run({stage.name: params[stage.name] for stage in stages}, x)


def test_bytes_of_real_frames():
    _, sent = trained(1)
    assert len(sent) == 4
    code, lengths, labels, framing = B * T * RANK * 4, B * 2, B * 4 + 4, 60 + 4
    for (up, data_up), (down, data_down) in (sent[:2], sent[2:]):
        assert frame.payload_bytes(up["m"]) == code + lengths
        assert frame.payload_bytes(down) == code
        assert len(data_up) == code + lengths + labels + framing
        assert len(data_down) == code + framing


def test_96_times_fewer_bytes_at_the_sizes_of_the_paper():
    """BERT-base, rank 8, 128 tokens, with lengths, and in frames, both directions."""
    config = BertConfig(width=768, heads=12, layers=12, ffn=3072)
    rows, steps, layer = 32, 128, 5
    x = {
        "ids": jax.ShapeDtypeStruct((rows, steps), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows, steps), jnp.bool_),
    }

    def sizes(place, **kwargs):
        edge = cut(model(config, **kwargs), after=f"layer_{layer}/{place}").segments[0]
        key = jax.random.key(0)
        params, state = jax.eval_shape(lambda: edge.init(key, x))
        spec = jax.eval_shape(
            lambda p, s, x: edge.apply(p, s, x, key=None, train=False)[0],
            params,
            state,
            x,
        )
        message = message_spec(LINK.forward, spec)
        full = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), message)
        code = dataclasses.replace(full.tree["h"], used=np.int32(rows * steps))
        up = dataclasses.replace(full, tree={"h": code})
        payload = [wire_bytes(LINK.forward, spec), frame.payload_bytes(code)]
        target = {"y": np.zeros(rows, np.int32), "n_valid": np.int32(rows)}
        at = {"kind": "train", "run": 0, "slot": 0, "tick": 0, "hop": 0}
        sent = ({"m": up, "target": target}, {"g": code})
        return payload, [len(frame.write(frame.Schema.of(m), m, **at)) for m in sent]

    small, small_frames = sizes("squeeze", squeeze={layer: Squeeze(8)})
    large, large_frames = sizes("ffn")
    assert small == [rows * steps * 8 * 4 + 2 * rows, rows * steps * 8 * 4]
    pairs = [*zip(large, small, strict=True)]
    pairs += [*zip(large_frames, small_frames, strict=True)]
    pairs += [(sum(large_frames), sum(small_frames))]
    for one, other in pairs:
        assert one / other == pytest.approx(96, rel=0.005)


def found(numbers, tree, data):
    """Whether some numbers cross: as a leaf, or as bytes of any integer type."""
    numbers = np.asarray(numbers).reshape(-1)
    kinds = ("uint8", "uint16", "int32", "int64", "float32")
    fits = [kind for kind in kinds if (numbers.astype(kind) == numbers).all()]
    leaves = [np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)]
    return any(numbers.astype(kind).tobytes() in data for kind in fits) or any(
        np.array_equal(leaf, numbers) for leaf in leaves
    )


@pytest.mark.parametrize("ushape", [False, True], ids=["plain", "u"])
@pytest.mark.parametrize("layer", LAYERS)
def test_ids_never_cross_and_labels_only_to_a_loss_in_the_cloud(layer, ushape):
    """At the first layer and at the last one."""
    _, x = dense()
    _, sent = trained(layer, ushape=ushape)
    assert len(sent) == 4 * (1 + ushape)
    for row in np.asarray(x["ids"]):
        assert not any(found(row, *message) for message in sent)
    labels = [found(LABELS, *message) for message in sent]
    # Plain: the first message of each step, and only that one.
    assert labels == ([False] * 8 if ushape else [True, False] * 2)


def test_ids_that_cross_would_be_found():
    ids = np.asarray(dense()[1]["ids"])
    for kind in (np.int32, np.uint16, np.float32):
        tree = {"m": {"h": np.ones(3), "ids": ids.astype(kind)}}
        data = frame.write(
            frame.Schema.of(tree), tree, kind="up", run=0, slot=0, tick=0, hop=0
        )
        assert found(ids[0], tree, data)


@pytest.mark.parametrize("skip", [None, "keep"])
def test_a_trained_cut_is_saved_as_a_dense_model(skip, tmp_path):
    layer = 1
    params, _ = trained(layer, skip=skip)
    _, x = dense()
    want = forward(model(squeeze={layer: Squeeze(RANK, skip=skip)}), params, x)
    rest = dict(params)
    block = merge(rest.pop(f"layer_{layer}/squeeze"), rest.pop(f"layer_{layer}/expand"))
    rest[f"layer_{layer}/ffn"] = block
    skipless = dataclasses.replace(CONFIG, skipless=() if skip else (layer,))
    save(tmp_path, skipless, rest)
    config = read_config(tmp_path)
    assert config == skipless
    loaded = {**load(tmp_path), "pool": params["pool"], "head": params["head"]}
    got = forward(model(config), loaded, x)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    # It did train, and the config decides which function it is.
    assert not np.allclose(forward(model(), dense()[0], x), want, atol=1e-2)
    other = dataclasses.replace(CONFIG, skipless=(layer,) if skip else ())
    assert np.abs(forward(model(other), loaded, x) - want).max() > 1e-3
