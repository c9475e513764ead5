"""What a cloud says to an edge's hello, before it builds anything."""

import jax
import numpy as np
import pytest

from splitjax.runtime.control import Refused
from splitjax.runtime.schema import Schema, WrongSchema
from splitjax.train.experiment import Experiment
from splitjax.train.next_token import NextToken
from splitjax.train.serve import agreed, build, check_labels

FACTS = {"classes": 2, "pairs": False, "steps_per_epoch": 3}


def shape(rows=8, width=8, dtype=np.int32, **more):
    ids = jax.ShapeDtypeStruct((rows, width), dtype)
    mask = jax.ShapeDtypeStruct((rows, width), np.bool_)
    return Schema.of({"x": {"ids": ids, "mask": mask, **more}}).to_bytes()


def hello(experiment, *, config=None, facts=FACTS, batch=None):
    config = {**agreed(experiment, 0), **(config or {})}
    return {"config": config, "facts": facts, "batch": batch or shape()}


def test_the_same_config_is_built(options):
    experiment = options()
    plan = build(experiment)(0, hello(experiment))
    assert plan.name == "seed_0" and plan.config["facts"] == FACTS
    made = plan.make()
    assert set(made.weights["params"]) == {"0"}
    with pytest.raises(WrongSchema):
        made.check({"x": {"ids": jax.ShapeDtypeStruct((8, 9), np.int32)}})
    made.check_labels({"y": np.array([0, 1]), "n_valid": np.int32(2)})
    with pytest.raises(ValueError, match="from -1 to 1: they are from 0 to 1"):
        made.check_labels({"y": np.array([1, -1]), "n_valid": np.int32(2)})


def test_values_are_not_classes_and_symbols_have_a_blank(options, tiny_decoder):
    """What is scored by its distance may be any number; counts are always checked."""
    none = Experiment().label_range({})
    check_labels(none, {"y": np.array([-7.5]), "n_valid": np.int32(1)})
    with pytest.raises(ValueError, match="n_valid is 2, of 1"):
        check_labels(none, {"y": np.array([0.0]), "n_valid": np.int32(2)})
    assert options().label_range({**FACTS, "classes": 0}) == none
    text = NextToken(model=str(tiny_decoder()), task="any")
    symbols = text.label_range({"steps_per_epoch": 1})
    assert symbols == (-1, 17)
    with pytest.raises(ValueError, match="from -1 to 16"):
        check_labels(symbols, {"y": np.array([[17, -1]]), "n_valid": np.int32(1)})


def test_data_may_lie_elsewhere_on_each_host(options):
    theirs = agreed(options(data_dir="/theirs"), 0)
    build(options(data_dir="/ours"))(0, {**hello(options()), "config": theirs})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(config={"rank": 5}), "rank: 5 at the edge, 4 here"),
        (dict(config={"seed": -1}), "seed=-1"),
        (dict(config={"seed": "0"}), "seed='0'"),
        (dict(config={"more": 1}), "more: 1 at the edge, None here"),
        (dict(facts={}), "facts of a data set"),
        (dict(facts={**FACTS, "classes": True}), "facts of a data set"),
        (dict(facts={**FACTS, "classes": 10**6}), "10,000 classes"),
        (dict(facts={**FACTS, "steps_per_epoch": 0}), "1 step"),
        (dict(batch=b"junk"), "JSON"),
        (dict(batch=shape(width=9)), "x/ids"),
        (dict(batch=shape(rows=17)), "x/ids"),
        (dict(batch=shape(dtype=np.int64)), "x/ids"),
        (dict(batch=shape(more=jax.ShapeDtypeStruct((8, 8), np.int32))), "maybe types"),
    ],
)
def test_anything_else_is_refused_and_named(options, wrong, words):
    experiment = options()
    with pytest.raises(Refused, match=words):
        build(experiment)(0, hello(experiment, **wrong))
