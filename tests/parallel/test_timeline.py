from fractions import Fraction

import pytest

from splitjax.parallel.schedule import schedule
from splitjax.parallel.timeline import simulate

# Stages, micro-batches; makespans without recomputation and of 1f1b, early, last,
# shifted; idle fractions of 1f1b and shifted. A forward and its repetition take 1, a
# backward 2.
TABLE = [
    (2, 4, 15, 20, 19, 17, 16, Fraction(1, 5), Fraction(1, 8)),
    (4, 8, 33, 44, 41, 39, 38, Fraction(3, 11), Fraction(4, 19)),
    (4, 16, 57, 76, 73, 71, 70, Fraction(3, 19), Fraction(1, 7)),
    (8, 16, 69, 92, 85, 83, 82, Fraction(7, 23), Fraction(10, 41)),
    (8, 32, 117, 156, 149, 147, 146, Fraction(7, 39), Fraction(11, 73)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}x{row[1]}")
def test_the_table_of_makespans(row):
    p, n, keep, plain, early, last, shifted, idle, idle_shifted = row
    assert simulate(schedule(p, n, recompute=False)).makespan == keep
    made = {
        kind: simulate(schedule(p, n, kind))
        for kind in ("gpipe", "1f1b", "early", "last", "shifted")
    }
    assert {kind: times.makespan for kind, times in made.items()} == {
        "gpipe": plain,
        "1f1b": plain,
        "early": early,
        "last": last,
        "shifted": shifted,
    }
    assert made["1f1b"].idle_fraction == idle
    assert made["shifted"].idle_fraction == idle_shifted


def test_the_formulas_behind_the_table():
    """For any sizes; the table could be met by accident."""
    for p in range(2, 9):
        for n in range(max(p, 4), 25, 5):
            whole = (n + p - 1) * 4
            spans = {k: simulate(schedule(p, n, k)) for k in ("1f1b", "early", "last")}
            assert spans["1f1b"].makespan == whole
            assert spans["1f1b"].idle_fraction == Fraction(p - 1, n + p - 1)
            assert spans["early"].makespan == whole - (p - 1)
            assert spans["last"].makespan == whole - (p - 1) - 2
            assert simulate(schedule(p, n, "shifted")).makespan == whole - (p + 2)


def test_in_flight():
    made = {kind: simulate(schedule(4, 8, kind)) for kind in ("gpipe", "1f1b")}
    assert made["gpipe"].in_flight == (8, 8, 8, 8)
    assert made["1f1b"].in_flight == (4, 3, 2, 1)
    assert simulate(schedule(4, 8, "shifted")).in_flight == (4, 3, 3, 1)
    assert simulate(schedule(4, 2)).in_flight == (2, 2, 2, 1)


def test_unlike_stages_wait_for_the_dearest():
    """By hand: stage 1 begins at 1, and works without a rest from then on."""
    times = simulate(schedule(2, 3, recompute=False), forward=[1, 2], backward=[1, 4])
    assert times.makespan == 1 + 3 * 6 + 1
    assert times.busy == (6, 18)
    assert times.idle == (Fraction(14, 20), Fraction(2, 20))


def test_communication_delays_but_occupies_nobody():
    """One micro-batch crosses each border twice."""
    lists = schedule(3, 1, recompute=False)
    times = simulate(lists, communication=[Fraction(1, 3), 5])
    assert times.makespan == 3 * 3 + 2 * (Fraction(1, 3) + 5)
    assert times.busy == (3, 3, 3)


def test_recomputation_that_is_early_hides_in_the_wait():
    """R0 of stage 0 is done while stage 1 works."""
    lists = schedule(2, 4, "last")
    spans = {(s.stage, str(s.op)): s for s in simulate(lists).spans}
    assert spans[0, "R0"].end <= spans[0, "G0"].end == spans[0, "B0"].start
    plain = {(s.stage, str(s.op)): s for s in simulate(schedule(2, 4)).spans}
    assert plain[0, "G0"].end == plain[0, "R0"].start
    assert spans[0, "B0"].start < plain[0, "B0"].start


def test_floats_are_exact():
    times = simulate(schedule(1, 10), forward=0.1, recompute=0.1, backward=0.1)
    assert times.makespan == 30 * Fraction(0.1)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (dict(forward=[1, 2, 3]), r"forward=\[1, 2, 3\]: expected 2 numbers"),
        (dict(backward=-1), "backward=-1: expected 2 numbers, none below 0"),
        (dict(communication=[1, 1]), "expected 1 numbers"),
        (dict(forward=0, recompute=0, backward=0), "take no time"),
    ],
)
def test_wrong_costs_are_refused(costs, message):
    with pytest.raises(ValueError, match=message):
        simulate(schedule(2, 4), **costs)
