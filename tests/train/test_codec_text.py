"""Codecs named on a command line."""

import pytest

from splitjax import codecs
from splitjax.train.codec_text import codec_of, factories
from splitjax.train.finetune import Finetune


def test_a_text_gives_what_the_call_gives():
    made = codec_of("ragged()+quantize(3, axis='group', group=4, power_of_two=True)")
    same = codecs.quantize(3, axis="group", group=4, power_of_two=True)
    assert made.name == codecs.chain(codecs.ragged(), same).name
    assert codec_of("chain(quantize(8))").name == codecs.quantize(8).name
    assert codec_of("on_tree({'h': cast('f16')})").name == "h:cast(f16)"
    assert {"identity", "cast", "quantize", "ragged", "chain", "on_tree"} <= set(
        factories()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantise(4)", "did you mean 'quantize'"),
        ("quantize(9)", "bits must be 2 to 8"),
        ("quantize(4, axes='token')", "axes"),
        ("quantize(4", "was never closed"),
        ("quantize", "'quantize' is no constant and no call"),
        ("4", "it is a int"),
        ("quantize(8) + ragged()", "Put the smooth ones first"),
        ("__import__('os').system('true')", "is no constant and no call"),
        ("open('x')", "no factory 'open'"),
        ("quantize(**{'bits': 4})", "is not read here"),
        ("wire_bytes(identity(), 4)", "no factory 'wire_bytes'"),
        ("", "is no codec"),
    ],
)
def test_a_text_that_is_no_codec_is_refused(text, message):
    with pytest.raises(ValueError, match="is no codec: ") as caught:
        codec_of(text)
    assert message in str(caught.value)


def test_the_options_give_the_link():
    made = Finetune(forward="ragged() + cast('bf16')", backward="quantize(4)").link()
    assert made.forward.name == "ragged+cast(bf16)"
    assert made.backward.name == codecs.quantize(4).name
    plain = Finetune(forward_bits=4, ragged=False, backward="cast('f16')").link()
    assert plain.forward.name == codecs.quantize(4, axis="channel").name
    assert plain.backward.name == "cast(f16)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(forward="quantize(4)", forward_bits=3), "take --config.forward_bits=32"),
        (dict(backward="quantise(4)"), "did you mean 'quantize'"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError) as caught:
        Finetune(**options).validate()
    assert message in str(caught.value)
