import jax
import jax.numpy as jnp

from splitjax.core.stage import Stage, join, repeat
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.heads import classification
from splitjax.models.pretrained import start
from splitjax.parallel.border import borders

TEXT = {
    "ids": jax.ShapeDtypeStruct((2, 5), jnp.int32),
    "mask": jax.ShapeDtypeStruct((2, 5), jnp.bool_),
}


def plain(name, run, params=()) -> Stage:
    def init(key, spec):
        return {n: jnp.ones(spec.shape[-1]) for n in params}, {}

    def apply(params, state, x, *, key, train):
        return run(params, x), state, {}

    return Stage(name, init, apply)


def of(stages, x):
    model = join(stages)
    return borders(stages, *jax.eval_shape(lambda: model.init(jax.random.key(0), x)), x)


def of_text(stages):
    made = jax.eval_shape(lambda: start(stages, {}, key=jax.random.key(0), spec=TEXT))
    return borders(stages, *made, TEXT)


def test_a_chain_may_be_cut_anywhere():
    times = lambda p, x: x * p["w"]  # noqa: E731
    stages = [plain(name, times, "w") for name in "abc"]
    found = of(stages, jnp.ones(3))
    assert [border.after for border in found] == ["a", "b"]
    assert all(border.legal and not border.tied for border in found)
    assert {border.carry_bytes for border in found} == {12}


def test_a_value_that_slips_past_a_border_is_found():
    """A skip by closure, from the first block to the third."""
    kept = []

    def save(p, x):
        kept.append(jnp.sin(x))
        return x + 1

    stages = [
        plain("down", save),
        plain("middle", lambda p, x: x * 2),
        plain("up", lambda p, x: x + kept[-1]),
        plain("head", lambda p, x: x.sum(-1)),
    ]
    found = of(stages, jnp.ones((2, 3)))
    assert [border.legal for border in found] == [False, False, True]
    assert found[0].skips == found[1].skips == ("float32[2,3]",)


def test_an_input_that_is_read_late_is_found():
    kept = []

    def first(p, x):
        kept.append(x)
        return x + 1

    stages = [plain("a", first), plain("b", lambda p, x: x + kept[-1])]
    assert [border.legal for border in of(stages, jnp.ones(3))] == [False]


def test_what_nobody_reads_is_not_alive():
    """The mask ends in the pool of a mean; what "cls" pools does not need it."""
    config = BertConfig(vocab=9, width=4, heads=2, layers=1, ffn=8, types=0)
    for pool, mask in (("mean", 10), ("cls", 0)):
        found = of_text(bert(config, classification(2, pool=pool)))
        last = {border.after: border for border in found}["layer_0/ffn"]
        assert last.carry_bytes == 2 * 5 * 4 * 4 + 10
        assert last.live_bytes == last.carry_bytes - 10 + mask
    assert all(border.legal for border in found)


def test_a_tied_head_is_seen_at_every_border():
    config = DecoderConfig(vocab=11, width=8, heads=2, kv_heads=1, layers=1, ffn=12)
    found = of_text(decoder(config))
    assert {border.tied for border in found} == {("embed/word/embedding",)}
    assert all(border.legal for border in found)


def test_the_rows_of_a_stack_are_not_tied():
    times = plain("layer", lambda p, x: x * p["w"], "w")
    found = of([repeat(times, 3)], jnp.ones(3))
    assert [border.after for border in found] == ["layer/0", "layer/1"]
    assert all(border.legal and not border.tied for border in found)
