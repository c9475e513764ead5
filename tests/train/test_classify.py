"""Image classification end to end: parts, runs, bytes, and what is refused."""

import jax
import numpy as np
import pytest

from splitjax.data.batches import model_inputs
from splitjax.data.table import DataError
from splitjax.runtime.control import Refused
from splitjax.runtime.schema import Schema, WrongSchema
from splitjax.storage import log
from splitjax.train.classify import Classify
from splitjax.train.serve import agreed, build

# 17 rows and a batch of 8 in two halves: the last step has a half without any picture.
TINY = dict(
    task="digits",
    model="cnn_norm",
    after=("block1",),
    batch_size=8,
    limit=17,
    eval_limit=12,
    epochs=1,
    pad=1,
    learning_rate=1e-3,
)
CODED = dict(
    forward="quantize(4)", backward="quantize(8, rounding='stochastic')", micro=2
)
RUNS = {
    "split": {},
    "unsplit": dict(mode="unsplit"),
    "coded": CODED,
    "frozen": dict(frozen_edge=True, send_once=True, epochs=2),
}
SPLIT = [name for name in RUNS if name != "unsplit"]
WIDTH = 4 * 4 * 32  # values that leave block1 of an 8 x 8 picture


def options(**more) -> Classify:
    return Classify(**{**TINY, **more})


@pytest.fixture(scope="module")
def ran(watch, tmp_path_factory):
    """A function from a name of RUNS to its `Watched` run, done once."""
    done = {}

    def run(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("run")
            done[name] = watch(options(**RUNS[name]), folder)
        return done[name]

    return run


def losses(seen):
    return [line["loss"] for line in log.read(seen.folder) if "loss" in line]


def statistics(run):
    """All running statistics of a state, by the party's name and their path."""
    both = {"edge": run.edge, "slot": run.slot}
    return {
        (party, name): leaves
        for party, entry in both.items()
        for name, leaves in entry.items()
        if name.startswith("state/") and jax.tree.leaves(leaves)
    }


def test_a_split_run_learns_what_the_unsplit_one_learns(ran):
    one, other = ran("split"), ran("unsplit")
    assert len(losses(one)) == 3
    np.testing.assert_allclose(losses(one), losses(other), rtol=1e-4)
    assert one.summary["metric_name"] == "test accuracy"
    assert one.summary["metric"] == other.summary["metric"]
    before, after = statistics(one.start), statistics(one.end)
    assert set(before) == {("edge", "state/0"), ("slot", "state/1")}
    for name in before:
        pairs = zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True)
        assert all((a != b).any() for a, b in pairs)


@pytest.mark.parametrize("name", SPLIT)
def test_bytes_are_compared_with_the_same_cut_in_float32(name, ran):
    summary = ran(name).summary
    pictures = 17 * RUNS[name].get("epochs", 1)
    assert summary["tokens"] == pictures
    assert summary["baseline_bytes"] == 2 * 4 * WIDTH * pictures
    total = summary["bytes_up"] + summary["bytes_down"]
    assert summary["ratio"] == round(summary["baseline_bytes"] / total, 2)
    assert 0 < summary["edge_share"] < 0.5


def test_codecs_and_a_frozen_edge_send_less(ran):
    sent = {
        name: (ran(name).summary["bytes_up"], ran(name).summary["bytes_down"])
        for name in SPLIT
    }
    assert sent["coded"][0] < 0.2 * sent["split"][0]
    assert sent["coded"][1] < 0.4 * sent["split"][1]
    assert sent["frozen"][1] == 0 and sent["frozen"][0] < 1.1 * sent["split"][0]


def test_a_half_step_without_pictures_is_finite(ran):
    seen = ran("coded")
    assert np.isfinite(losses(seen)).all() and len(losses(seen)) == 3
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(statistics(seen.end)))
    [*_, last] = options(**CODED).parts(0).train.epoch(0, micro=2)
    assert [batch["n_valid"] for batch in last] == [1, 0]


def test_a_frozen_edge_norms_with_what_it_has(ran):
    seen = ran("frozen")
    one, other = (s.edge for s in (seen.start, seen.end))
    for name in ("params", "state/0"):
        jax.tree.map(np.testing.assert_array_equal, one[name], other[name])


@pytest.mark.parametrize("name", ["split", "coded"])
def test_no_picture_crosses(name, ran):
    parts = options(**RUNS[name]).parts(0)
    batches = [*parts.train.epoch(0), *parts.evals["test"].epoch(0)]
    rows = [
        picture.tobytes()
        for [batch] in batches
        for picture in batch["image"][: batch["n_valid"]]
    ]
    assert rows[0] in np.asarray(batches[0][0]["image"]).tobytes()
    sent = [
        np.asarray(leaf).tobytes()
        for _, _, message in ran(name).sent
        for leaf in jax.tree.leaves(message)
    ]
    assert sent and not any(row in leaf for leaf in sent for row in rows)


def test_options_choose_the_parts():
    parts = options(hold_out=30, limit=0, eval_limit=0, mode="unsplit").parts(0)
    assert len(parts.train) == 1437 - 30 and len(parts.evals["dev"]) == 30
    assert parts.baseline_width == parts.setup_bytes == 0
    parts = options(label_side="edge").parts(0)
    assert parts.split.cut.owners == ("edge", "cloud", "edge")
    assert parts.baseline_width == WIDTH + 10  # the logits come back
    parts = options(hold_out=30, limit=0, mode="unsplit").parts(0)
    seen = {row.tobytes() for row in parts.train.table.image}
    assert len(seen) + 30 > 1400  # the pictures left out are others
    names = [stage.name for stage in options(model="resnet18").stages(parts.facts)]
    assert names[:3] == ["pixels", "stem", "layer1/0"] and names[-1] == "head"
    names = [stage.name for stage in options(model="vgg16").stages(parts.facts)]
    assert names[:2] == ["pixels", "block1/0"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(model="resnet19"), "model='resnet19'"),
        (dict(stem="cifar"), "stem='cifar' is for a ResNet"),
        (dict(model="resnet50", stem="cifar", pretrained="imagenet"), "has its own"),
        (dict(pretrained="imagenet"), "for model='resnet50', not 'cnn_norm'"),
        (dict(pad=-1), "pad=-1"),
        (dict(after=()), "a place to cut"),
        (dict(forward="quantise(4)"), "did you mean 'quantize'"),
        (dict(send_once=True), "needs frozen_edge"),
        (dict(after=("block9",)), "cut after 'block9': no such stage"),
        (dict(hold_out=5000), "leaves nothing of 1437"),
        (dict(task="digit"), "no image data set 'digit': did you mean 'digits'"),
    ],
)
def test_what_makes_no_sense_is_named(more, message):
    experiment = options(**more)
    with pytest.raises(ValueError, match=message):
        experiment.validate()
        experiment.parts(0)


FACTS = {"classes": 10, "mean": [0.5], "deviation": [0.25], "steps_per_epoch": 3}


def shape(rows=8, side=8, channels=1, dtype=np.uint8, **more):
    image = jax.ShapeDtypeStruct((rows, side, side, channels), dtype)
    mask = jax.ShapeDtypeStruct((rows,), np.bool_)
    return Schema.of({"x": {"image": image, "mask": mask, **more}}).to_bytes()


def hello(experiment, facts=FACTS, batch=None):
    return {"config": agreed(experiment, 0), "facts": facts, "batch": batch or shape()}


def test_a_cloud_builds_its_half_without_pictures():
    experiment = options()
    made = build(experiment)(0, hello(experiment)).make()
    assert set(made.weights["params"]) == {"0"}
    assert set(made.weights["params"]["0"]) == {"pixels", "block1/0", "block1/pool"}
    with pytest.raises(WrongSchema, match="x/image"):
        image = jax.ShapeDtypeStruct((8, 8, 8, 1), np.float32)
        mask = jax.ShapeDtypeStruct((8,), np.bool_)
        made.check({"x": {"image": image, "mask": mask}})


def test_whole_batches_are_predicted_for_where_halves_are_trained_on():
    experiment = options(micro=2)
    for rows in (4, 8):
        build(experiment)(0, hello(experiment, batch=shape(rows=rows)))
    with pytest.raises(Refused, match=r"x/image has \[4, 8\] rows"):
        build(experiment)(0, hello(experiment, batch=shape(rows=6)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(facts={}), "facts of a data set"),
        (dict(facts={**FACTS, "classes": True}), "1 to 10,000 classes"),
        (dict(facts={**FACTS, "steps_per_epoch": 0}), "1 step or more"),
        (dict(facts={**FACTS, "mean": [0.5] * 2}), "for each channel"),
        (dict(facts={**FACTS, "mean": "x"}), "for each channel"),
        (dict(facts={**FACTS, "deviation": [float("nan")]}), "from 0 to 1"),
        (dict(facts={**FACTS, "mean": [1]}), "from 0 to 1"),
        (dict(batch=shape(rows=9)), r"x/image has \[8\] rows"),
        (dict(batch=shape(dtype=np.int32)), "x/image is uint8"),
        (dict(batch=shape(side=2000)), "1024 pixels wide at most"),
        (dict(batch=shape(channels=5)), "x/image"),
        (dict(batch=shape(ids=jax.ShapeDtypeStruct((8,), np.int32))), "image and mask"),
    ],
)
def test_anything_else_is_refused_and_named(wrong, words):
    experiment = options()
    with pytest.raises(Refused, match=words):
        build(experiment)(0, hello(experiment, **wrong))


def test_pictures_to_predict_for(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, image=np.ones((3, 8, 8, 1), np.uint8))
    names, batches = options().texts(str(path))
    [[batch]] = batches.epoch(0)
    assert names == [0, 1, 2] and batch["n_valid"] == 3
    assert set(model_inputs(batch)) == {"image", "mask"}
    np.savez(path, image=np.ones((3, 9, 8, 1), np.uint8))
    with pytest.raises(DataError, match=r"pictures are \(9, 8, 1\), those of digits"):
        options().texts(str(path))
    path.write_text("no archive")
    with pytest.raises(DataError, match="is no .npz file with an array"):
        options().texts(str(path))


@pytest.mark.slow
@pytest.mark.real("resnet50", "cifar10")
def test_pretrained_weights_are_taken_but_for_the_head(need_data):
    more = dict(task="cifar10", model="resnet50", pretrained="imagenet")
    parts = options(**more, after=("layer3",), mode="split").parts(0)
    edge, cloud = parts.params
    assert edge["stem"]["conv"]["kernel"].shape == (7, 7, 3, 64)
    mean = parts.state[0]["stem"]["batch_stats"]["norm"]["mean"]
    assert np.abs(mean).max() > 0.1  # a new one would be zero
    assert cloud["head"]["classifier"]["kernel"].shape == (2048, 10)
    assert parts.baseline_width == 4096 and 0.5 < parts.edge_share < 1
