import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from matplotlib import image

from splitjax.core.stage import join
from splitjax.studies.plan import report as plan_report
from splitjax.studies.plan.measure import measured, pipeline
from splitjax.studies.plan.options import Planning
from splitjax.studies.plan.plan import plan_and_measure
from splitjax.studies.plan.subject import subject, subject_of
from splitjax.train.finetune import Finetune

SPEEDS = dict(gflops=1.0, stream_gb=1.0)


def options(folder, **how):
    sizes = dict(devices=2, mesh="pipe=2", micro=3, rows=2, tokens=6, rounds=1)
    return Planning(**sizes | SPEEDS | dict(model=str(folder)) | how)


@pytest.fixture(scope="module")
def found(tiny_language):
    return plan_and_measure(options(tiny_language[0]))


def test_a_plan_is_measured_beside_the_even_cut(found):
    assert (found.plan.data, found.plan.pipe, found.plan.tensor) == (1, 2, 1)
    assert found.even.cuts == (3,)
    both = [(found.plan, found.times)]
    if found.plan.cuts != found.even.cuts:
        both.append((found.even, found.even_times))
    for plan, times in both:
        assert len(times.forward) == len(times.backward) == plan.pipe
        assert min(times.forward + times.backward) > 0
        assert times.recompute == (0.0, 0.0)
        work = max(
            3 * (f + b) for f, b in zip(times.forward, times.backward, strict=True)
        )
        assert work <= float(times.timeline.makespan) <= 2 * 3 * work
        assert times.whole > 0 and np.isfinite(times.loss)


def test_the_report_has_both_times_of_each_stage(found, tmp_path):
    plan_report.write(found, tmp_path / "plan.json")
    made = json.loads((tmp_path / "plan.json").read_text(), parse_constant=pytest.fail)
    assert made["planned"]["mesh"] == "data=1,pipe=2,tensor=1"
    rows = made["planned"]["stages"]
    assert [row["stage"] for row in rows] == [0, 1]
    assert sum(row["blocks"] for row in rows) == 5
    for row, stage in zip(rows, found.plan.stages, strict=True):
        assert row["foretold_seconds"] == pytest.approx(
            float(stage.forward_seconds + stage.backward_seconds)
        )
        assert row["measured_seconds"] == pytest.approx(
            row["measured_forward_seconds"] + row["measured_backward_seconds"]
        )
    assert made["machine"]["link_bytes_per_second"] is None  # at no cost: no bound
    text = plan_report.text(found)
    for word in ("embed", "head", "foretold", "measured", "planned", "makespan"):
        assert word in text
    plan_report.plot(found, tmp_path / "plan.png", title="tiny")
    assert image.imread(tmp_path / "plan.png").std() > 0.01


def test_the_pipeline_is_the_plans(found, tiny_language):
    about = subject(options(tiny_language[0]))
    pipe = pipeline(found.plan, about)
    names = [s.name for part in pipe.cut.segments for s in part.stages]
    assert names[0] == found.plan.stages[0].first
    assert names[-1] == found.plan.stages[-1].last
    assert pipe.micro == 3 and [place.home.id for place in pipe.places] == [0, 1]
    wide = pipeline(dataclasses.replace(found.plan, data=2), about)
    assert [dict(place.home.shape) for place in wide.places] == 2 * [{"data": 2}]
    ids = [[device.id for device in place.devices] for place in wide.places]
    assert ids == [[0, 1], [2, 3]]


def test_a_mesh_is_chosen_where_none_is_given(tiny_language):
    how = dict(mesh="", devices=4, measure=False, link_gb=1.0, widths=(4, 2))
    found = plan_and_measure(options(tiny_language[0], **how))
    plan = found.plan
    assert plan.data * plan.pipe * plan.tensor == 4 and found.times is None
    assert {c.data * c.pipe * c.tensor for c in found.looked_at} == {4}
    text = plan_report.text(found)
    assert text.count("chosen") == 1 and "2 rows of a micro-batch" in text
    assert "measured" not in text


def test_a_memory_asks_for_recomputation(tiny_language):
    """Half of what all would keep; the stage's time foretold grows by it."""
    free = plan_and_measure(options(tiny_language[0], measure=False)).plan
    [first, last] = free.stages
    need = max(
        s.parameter_bytes + s.kept_bytes * share
        for s, share in ((first, 0.7), (last, 1.0))
    )
    how = dict(measure=False, memory_gb=need / 1e9, after=(first.last,))
    tight = plan_and_measure(options(tiny_language[0], **how)).plan
    assert tight.cuts == free.cuts and sum(tight.recompute) > sum(free.recompute)
    assert tight.seconds > free.seconds


def test_cuts_of_ones_own(tiny_language):
    how = dict(measure=False, after=("embed",))
    assert plan_and_measure(options(tiny_language[0], **how)).plan.cuts == (1,)
    with pytest.raises(ValueError, match="did you mean 'embed'"):
        plan_and_measure(options(tiny_language[0], measure=False, after=("embd",)))


def test_an_experiments_model_is_planned(tiny_model, tiny_task, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from splitjax.train.finetune import Finetune\n\n\ndef get_config():\n"
        f"    return Finetune(task={str(tiny_task)!r}, model={str(tiny_model)!r}, "
        "batch_size=8, micro=2, max_length=8, recompute='full')\n"
    )
    how = dict(measure=False, mesh="data=2,pipe=2", devices=4)
    plan = plan_and_measure(options(tmp_path / "mine.py", **how)).plan
    assert plan.stages[0].first == "embed" and plan.stages[-1].last == "head"
    about = subject(options(tmp_path / "mine.py"))
    assert about.x["ids"].shape[0] == 4
    given = about.params, about.state, about.x
    run = functools.partial(join(about.stages).apply, key=None, train=False)
    # The plan says what is computed again; twice would be counted as once.
    assert "prevent_cse" not in str(jax.make_jaxpr(run)(*given))


def test_an_experiment_at_hand_is_planned(tiny_model, tiny_task):
    """From a program of one's own, which has no config file."""
    sizes = dict(batch_size=8, max_length=8, after=("embed",), mesh="data=2")
    run = Finetune(task=str(tiny_task), model=str(tiny_model), **sizes)
    about = subject_of(run)
    sizes = dict(devices=2, mesh="pipe=2", micro=3, measure=False)
    found = plan_and_measure(Planning(**SPEEDS, **sizes), about)
    assert found.plan.stages[0].first == "embed"
    made = plan_report.figure(found, "mine")
    assert len(made.axes) == 1 and made.get_suptitle() == "mine"


def test_an_experiment_whose_kernels_no_mesh_divides_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from splitjax.train.finetune import Finetune\n\n\ndef get_config():\n"
        "    return Finetune(fused='auto')\n"
    )
    with pytest.raises(ValueError, match="fused='auto' beside mesh='pipe=2'"):
        subject(options(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(micro=0), "micro=0: it must be 1 or more"),
        (dict(gflops=-1.0), "gflops=-1.0: it must be 0 or more"),
        (dict(kind="2f2b"), "kind='2f2b'"),
        (dict(clock="sun"), "clock='sun'"),
        (dict(mesh="pipe=3"), "mesh='pipe=3' is of 3 devices and devices=2"),
        (dict(mesh="pipes=2"), "did you mean 'pipe'"),
        (dict(mesh="expert=2"), "the axes data, pipe and tensor"),
        (dict(mesh="", after=("embed",)), "need a mesh"),
        (dict(after=("embed", "norm")), "after names 2 cuts, and mesh='pipe=2'"),
        (dict(first_ratio=1.5), "at most 1"),
    ],
)
def test_a_wrong_wish_is_told(how, message, tiny_language):
    with pytest.raises(ValueError, match=message):
        options(tiny_language[0], **how).validate()


@pytest.mark.parametrize("mesh", ["tensor=2", ""])
def test_a_plan_of_parted_matrices_is_told_and_not_timed(mesh, tiny_language):
    """One row: of two devices `data` has no use; a stage fewer waits for none."""
    how = dict(mesh=mesh, rows=1, micro=1, widths=(4, 2))
    found = plan_and_measure(options(tiny_language[0], **how))
    assert found.plan.tensor == 2 and found.times is None
    assert "Not timed: the matrices of data=1,pipe=1" in plan_report.text(found)
    about = subject(options(tiny_language[0], **how))
    with pytest.raises(ValueError, match="measure=False"):
        measured(found.plan, about)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(mesh="data=2", rows=1), "1 rows of a micro-batch .* by data=2"),
        (dict(mesh="tensor=2", widths=(4, 3)), "tensor=2 does not divide 3"),
        (dict(mesh="tensor=2"), "nothing is known that the axis tensor"),
    ],
)
def test_a_mesh_of_ones_own_divides_what_it_must(how, message, tiny_language):
    with pytest.raises(ValueError, match=message):
        plan_and_measure(options(tiny_language[0], measure=False, **how))
