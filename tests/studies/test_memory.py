"""The memory of an experiment's cloud, predicted and compiled."""

import json

import pytest

from splitjax.studies.memory import row, rows, text, write
from tests.train.test_scaled import options, residual_bytes


def test_the_report_is_of_what_the_program_takes(tmp_path):
    """To the byte; and of gradients an eighth, but for the classifier's 10 biases."""
    found = row(options(mesh="data=8", zero=2, clip=0.0, optimizer="sgd"))
    [arguments, temporary] = found.held
    assert arguments.predicted_bytes == arguments.measured_bytes
    memory = found.memory
    assert memory.gradients == (memory.params - 40) // 8 + 40
    assert memory.moments == memory.gradients + 4  # SGD's momentum, and its steps
    assert temporary.measured_bytes > memory.gradients
    shown = text([found])
    assert "| 2 " in shown and "not counted" in shown
    write([found], tmp_path / "memory.json")
    [line] = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert line["arguments_measured"] == arguments.measured_bytes
    assert line["edge"] == residual_bytes(options())
    # Gradients of eight devices are summed: each is sent once there and once back.
    sums = [each for each in found.sent if each.op == "all-reduce"]
    assert sum(each.bytes for each in sums) >= memory.params
    assert line["sent"] == sum(each.sent_bytes for each in found.sent)


def test_a_cloud_without_a_mesh_has_no_stages():
    found = rows(options(zero=0), ["none", "full"])
    assert [(one.zero, one.recompute) for one in found] == [(0, "none"), (0, "full")]
    assert all(
        one.held[0].predicted_bytes == one.held[0].measured_bytes for one in found
    )
    assert found[1].memory.kept < found[0].memory.kept


def test_g_a_report_of_another_recomputation():
    """Before the first row, which takes a while."""
    with pytest.raises(ValueError, match="recompute='some': it must be one of"):
        rows(options(mode="unsplit"), ["none", "some"])


def test_g_a_report_of_another_cut():
    with pytest.raises(ValueError, match="1 segments .mode='unsplit'"):
        row(options(mode="unsplit"))
    with pytest.raises(ValueError, match="label_side='edge'"):
        row(options(label_side="edge"))
