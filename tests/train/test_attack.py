"""Attacks on whole runs: texts here; pictures with the image experiment's tests."""

import csv
import dataclasses
import json
import types

import numpy as np
import pytest

from splitjax.data.synthetic import toy
from splitjax.runtime.local import Local
from splitjax.storage import log
from splitjax.train import attack, loop, report, runs
from splitjax.train.classify import Classify

ALL = ("inversion", "decoder", "label", "dcor")
WIDE = dict(after=("embed",), attack=ALL)
NARROW = dict(rank=1, forward_bits=2, frozen_edge=True, attack=ALL)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Texts as of `tiny_task`, but enough of them to attack."""
    folder = tmp_path_factory.mktemp("task")
    for split, rows in (("train", 24), ("dev", 160)):
        table = toy(split, rows=rows)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = zip(table.text_a, table.label.tolist(), strict=True)
            csv.writer(file).writerows([("text", "label"), *lines])
    return str(folder)


@pytest.fixture(scope="module")
def ran(options, task, tmp_path_factory):
    """A function from options to the summary of their run, done once."""
    done = {}

    def run(**more):
        name = repr(sorted(more.items()))
        if name not in done:
            folder = tmp_path_factory.mktemp("run")
            experiment = options(task=task, steps=2, batch_size=16, **more)
            done[name] = loop.train(experiment, 0, folder, progress=False), folder
        return done[name]

    return run


def leaks(ran, **more):
    return report.leaks_of(ran(**more)[0])


def test_behind_the_embedding_every_word_is_read(ran):
    found = leaks(ran, **WIDE)
    assert found["inversion_token_recovery"] > 0.95 > 3 * found["token_chance"]
    assert found["inversion_variance_left"] < 0.2
    assert found["dcor"] > 0.7 and found["sign_entropy"] > 0.5


def test_a_narrow_coarse_code_tells_less(ran):
    wide = leaks(ran, **WIDE)
    narrow = leaks(ran, **NARROW)
    assert narrow["inversion_variance_left"] > wide["inversion_variance_left"] + 0.2
    assert narrow["inversion_token_recovery"] < 0.7 * wide["inversion_token_recovery"]
    assert narrow["decoder_token_recovery"] < wide["decoder_token_recovery"]
    assert narrow["dcor"] < wide["dcor"]


def test_labels_leak_by_the_gradient_and_not_where_none_is_sent(ran):
    assert leaks(ran, **WIDE)["label_direction_auc"] > 0.8
    assert "label_direction_auc" not in leaks(ran, **NARROW)


def test_an_attack_can_come_later_and_stands_in_the_report(ran, options, task):
    """Of a U-shaped run, whose labels stay on the edge: the logits' gradient tells."""
    summary, folder = ran(label_side="edge")
    assert "attacks" not in summary
    experiment = options(task=task, steps=2, batch_size=16, label_side="edge")
    found = summary
    for name in ("dcor", "label"):
        later = dataclasses.replace(experiment, attack=(name,))
        found = loop.train(later, 0, folder, progress=False)
    assert found == json.loads((folder / "summary.json").read_text())
    assert {k: v for k, v in found.items() if k != "attacks"} == summary
    assert set(found["attacks"]) == {"dcor", "label"}
    assert found["attacks"]["label"]["label_accuracy"] == 1.0
    lines = report.table([summary, found]).splitlines()
    assert "dcor" in lines[0] and "sign entropy" in lines[0]
    assert f"{found['attacks']['dcor']['dcor']:.4f}" in lines[3]


def test_the_attacker_is_judged_on_texts_that_it_does_not_have(ran, options, task):
    _, folder = ran(label_side="edge")
    experiment = options(task=task, steps=2, batch_size=16, label_side="edge")
    run = runs.open_trained(experiment, 0, folder)
    heard, again = (attack.listen(run.parts, run.state, 0) for _ in range(2))
    np.testing.assert_array_equal(heard.known, again.known)
    own, others = (set(heard.example[mask]) for mask in (heard.known, ~heard.known))
    assert not own & others and len(own | others) == 160
    assert 70 < len(own) < 90


def test_pictures_behind_a_cut(tmp_path):
    """And the leak loss, an option of every cut, is paid: it is part of the loss."""
    base = Classify(
        task="digits",
        after=("block1/pool",),
        limit=64,
        eval_limit=200,
        batch_size=32,
        steps=2,
        pad=0,
        flip=False,
        attack=("inversion", "dcor", "label"),
    )
    losses = []
    for leak in (0.0, 5.0):
        one = dataclasses.replace(base, leak=leak)
        summary = loop.train(one, 0, tmp_path / str(leak), progress=False)
        losses.append(log.read(tmp_path / str(leak))[0]["loss"])
    found = report.leaks_of(summary)
    assert found["inversion_variance_left"] < 0.2 and found["inversion_ssim"] > 0.8
    assert 0.5 < found["dcor"] <= 1 and found["sign_entropy"] > 0.1
    assert found["label_direction_auc"] > 0.6 and found["label_chance"] < 0.2
    assert 2.5 < losses[1] - losses[0] <= 5


def test_a_leak_loss_without_something_to_learn_is_refused():
    how = dict(task="digits", after=("block1",))
    for more, words in (
        (dict(leak=1.0, frozen_edge=True), "keeps it from learning"),
        (dict(leak=-1.0), "0 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            Classify(**how, **more).validate()
    with pytest.raises(ValueError, match="nothing to hide it with"):
        Classify(task="digits", after=("pixels",), leak=1.0).parts(0)


class Scored:
    """Batches whose labels are scores."""

    def epoch(self, number, *, shuffle):
        yield [{"y": np.zeros(2, np.float32)}]


def stub(driver, segments=2):
    parts = types.SimpleNamespace(split=range(segments), evals={"dev": Scored()})
    return types.SimpleNamespace(parts=parts, driver=driver)


def test_what_makes_no_sense_is_refused_before_the_run(options):
    with pytest.raises(ValueError, match="attack='guess'.*inversion"):
        options(attack=("guess",)).validate()
    with pytest.raises(ValueError, match="both ends of the links"):
        options(attack=("dcor",), mode="processes").validate()
    both = Local.__new__(Local)
    with pytest.raises(ValueError, match="guesses a class.*'dev' are float32"):
        attack.refuse(("label",), stub(both))
    attack.refuse(("dcor",), stub(both))
    with pytest.raises(ValueError, match="edge's alone"):
        attack.refuse(("dcor",), stub(None))


def test_a_run_without_a_cut_leaks_nothing():
    run = stub(None, segments=1)
    attack.refuse(("label",), run)
    assert attack.attacked(("dcor",), run, 0) == {"dcor": {}}
