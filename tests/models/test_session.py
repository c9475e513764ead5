import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.cut import cut
from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.session import generate, session

SIZES = dict(vocab=30, width=16, heads=4, layers=2, ffn=24, positions=16, init_std=0.3)
CONFIGS = {
    "gpt2": DecoderConfig("gpt2", kv_heads=4, **SIZES),
    "llama": DecoderConfig(kv_heads=2, tied=False, **SIZES),
}


@functools.cache
def built(family):
    return decoder(CONFIGS[family])


@pytest.fixture(params=list(CONFIGS))
def model(request, key):
    """Stages, parameters, state and texts of 10, 7 and 4 tokens, padded on the left."""
    stages = built(request.param)
    mask = jnp.arange(10)[None] >= jnp.array([[0], [3], [6]])
    x = {"ids": jax.random.randint(key, (3, 10), 0, 30), "mask": mask}
    params, state = jax.jit(lambda k: join(stages).init(k, spec_of(x)))(key)
    return stages, params, state, x


def room(x, tokens):
    return {k: jax.ShapeDtypeStruct((3, tokens), v.dtype) for k, v in x.items()}


def part(x, first, last):
    return {name: leaf[:, first:last] for name, leaf in x.items()}


@functools.cache
def runner(stages):
    whole = join(stages)
    return jax.jit(lambda p, s, x: whole.apply(p, s, x, key=None, train=False)[:2])


def test_a_session_in_pieces_equals_the_whole(model):
    stages, params, state, x = model
    run = runner(stages)
    want, _ = run(params, state, x)
    memory = session(stages, params, state, room(x, 12))
    got = []
    for first, last in ((0, 7), (7, 8), (8, 9), (9, 10)):
        y, memory = run(params, memory, part(x, first, last))
        got.append(y)
    real = np.asarray(x["mask"])
    got = np.concatenate(got, 1)
    np.testing.assert_allclose(got[real], np.asarray(want)[real], atol=2e-5)
    assert int(memory["layer_1/attention"]["cache"]["place"]) == 10


def test_each_party_remembers_for_its_own_stages(key):
    stages = built("llama")
    made = cut(stages, after="layer_0/attention")
    ids = jax.random.randint(key, (3, 10), 0, 30)
    x = {"ids": ids, "mask": ids >= 0}
    params, state = jax.jit(lambda k: join(stages).init(k, spec_of(x)))(key)
    want, _ = runner(stages)(params, state, x)
    spec, ends = room(x, 10), []
    for segment, own in zip(made.segments, made.partition(params), strict=True):
        memory = session(segment.stages, own, state, spec)
        ends.append([runner(segment.stages), own, memory])
        h = jax.ShapeDtypeStruct((3, 10, 16), jnp.float32)
        spec = {"h": h, "mask": spec["mask"]}
    for token in range(4):
        y = part(x, token, token + 1)
        for end in ends:
            y, end[2] = end[0](end[1], end[2], y)
        np.testing.assert_allclose(y[:, 0], want[:, token], atol=2e-5)


def test_more_tokens_than_there_is_room_for_are_no_numbers(model):
    stages, params, state, x = model
    run = runner(stages)
    memory = session(stages, params, state, room(x, 12))
    y, memory = run(params, memory, part(x, 0, 7))
    assert jnp.isfinite(y).all()
    y, _ = run(params, memory, part(x, 0, 7))
    assert jnp.isnan(y).all()


def test_generated_tokens_are_the_likeliest_of_the_whole_text(model):
    stages, params, state, x = model
    run = runner(stages)
    ids, mask = np.asarray(x["ids"])[:, :7], np.asarray(x["mask"])[:, :7]
    new = generate(stages, params, state, ids, tokens=3, mask=mask)
    assert new.shape == (3, 3) and new.dtype == np.int32
    whole = {
        "ids": jnp.asarray(np.concatenate([ids, new], 1)),
        "mask": jnp.asarray(np.pad(mask, ((0, 0), (0, 3)), constant_values=True)),
    }
    logits = np.asarray(run(params, state, whole)[0])
    assert np.array_equal(logits[:, 6:9].argmax(-1), new)


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_drawn_tokens_follow_the_key(model, key):
    stages, params, state, x = model
    ids = np.asarray(x["ids"])[:, :7]

    def draw(key):
        return generate(stages, params, state, ids, tokens=3, temperature=2.0, key=key)

    assert np.array_equal(draw(key), draw(key))
    assert not np.array_equal(draw(key), draw(jax.random.key(5)))


def test_bad_input_is_refused(model):
    stages, params, state, x = model
    ids = np.asarray(x["ids"])
    with pytest.raises(ValueError, match="tokens=0"):
        generate(stages, params, state, ids, tokens=0)
    with pytest.raises(ValueError, match="on the left"):
        mask = np.asarray(x["mask"])[:, ::-1]
        generate(stages, params, state, ids, tokens=1, mask=mask)
    with pytest.raises(ValueError, match="give a key"):
        generate(stages, params, state, ids, tokens=1, temperature=1.0)
