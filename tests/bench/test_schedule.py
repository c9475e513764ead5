import pytest

from splitjax.bench import schedule


def test_rows_are_those_of_the_model_of_meraks_lists():
    """A step of 1f1b takes 4 (n + p - 1), and the shifted one p + 2 less."""

    def timed(steps):
        pytest.fail(f"nothing is timed: {list(steps)}")

    [part] = schedule.PARTS.values()
    made = {row["name"]: row for row in part(timed)}
    for p, n in ((2, 4), (4, 8), (4, 16), (8, 16), (8, 32)):
        whole, size = 4 * (n + p - 1), f"{p} stages, {n} micro-batches"
        shifted = made[f"{size}, shifted: makespan"]
        assert shifted["value"] == whole - (p + 2)
        assert shifted["ratio"] == pytest.approx(1 - (p + 2) / whole)
        assert shifted["reference"] == f"1f1b, {whole}"
        assert made[f"{size}, gpipe: makespan"]["ratio"] == 1
        assert made[f"{size}, gpipe: in flight"]["value"] == n * p
        held = made[f"{size}, shifted: in flight"]
        assert held["value"] == sum(range(p + 1)) + 1
        assert held["ratio"] == pytest.approx(1 + 1 / sum(range(p + 1)))
    # By the sheet's table.
    idle = made["8 stages, 32 micro-batches, shifted: idle"]
    assert idle["value"] == pytest.approx(100 * 11 / 73)
    assert idle["ratio"] == pytest.approx(11 / 73 / (7 / 39))
