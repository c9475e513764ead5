import dataclasses
import itertools
import random
from fractions import Fraction

import pytest

from splitjax.parallel.border import Border
from splitjax.parallel.cost import Block
from splitjax.parallel.machine import Machine
from splitjax.parallel.moves import refine
from splitjax.parallel.partition import even, min_max
from splitjax.parallel.plan import best, candidates
from splitjax.parallel.stages import staged


def blocks(costs, *, parameters=40, residuals=100, inputs=10):
    return [
        Block(f"b{i}", float(c), 2.0 * c, parameters, inputs, residuals)
        for i, c in enumerate(costs)
    ]


def between(made, illegal=()):
    return [
        Border(block.name, 10, 8, ("float32[1]",) if i in illegal else (), ())
        for i, block in enumerate(made[:-1], 1)
    ]


PLAIN = Machine(1.0)


def plan(costs, machine=PLAIN, *, illegal=(), size=None, **how):
    made = blocks(costs, **(size or {}))
    how = dict(micro=8, pipe=4) | how
    return staged(made, between(made, illegal), machine, **how)


UNEVEN = [1] * 9 + [8]


def test_the_dearest_block_stands_alone():
    made = plan(UNEVEN)
    assert made.cuts[-1] == 9 and made.stages[-1].blocks == 1
    assert [stage.first for stage in made.stages] == ["b0", "b3", "b6", "b9"]
    assert made.seconds == made.timeline.makespan == 8 * 24 + 3 * 9
    assert made.seconds < plan(UNEVEN, cuts=even(10, 4)).seconds


def test_moves_never_lose_and_sometimes_win():
    """Against the min-max cut alone, and against all cuts of small models."""
    chance, wins = random.Random(1), 0
    for _ in range(12):
        costs = [chance.randint(1, 9) for _ in range(7)]
        made = plan(costs, pipe=3, micro=4)
        start = plan(costs, pipe=3, micro=4, cuts=min_max(costs, 3)).seconds
        least = min(
            plan(costs, pipe=3, micro=4, cuts=cuts).seconds
            for cuts in itertools.combinations(range(1, 7), 2)
        )
        assert least <= made.seconds <= start
        wins += made.seconds < start
    assert wins


def test_moves_heed_what_does_not_fit():
    def time(cuts):
        if cuts[0] == 4:
            raise ValueError("too large")
        return Fraction(abs(cuts[0] - 5))

    assert refine((2,), range(1, 9), time) == (3,)
    assert refine((2,), [1, 2, 5, 8], time) == (5,)


def test_it_is_not_cut_where_more_is_alive():
    assert plan([1] * 8, pipe=2).cuts == (4,)
    assert plan([1] * 8, pipe=2, illegal=(4,)).cuts in ((3,), (5,))
    with pytest.raises(ValueError, match="8 blocks have 1 legal cuts"):
        plan([1] * 8, pipe=3, illegal=(1, 2, 3, 4, 5, 6))


def test_recomputation_is_as_little_as_fits():
    """A stage of 2 blocks: 2 x 4 x 40 of parameters; 4, 3, 2, 1 in flight."""

    def at(room):
        machine = Machine(1.0, memory_bytes=320 + room)
        return plan([1] * 8, machine, cuts=(2, 4, 6))

    roomy = at(4 * 200)
    assert roomy.recompute == (0, 0, 0, 0)
    assert [stage.in_flight for stage in roomy.stages] == [4, 3, 2, 1]
    assert [stage.kept_bytes for stage in roomy.stages] == [800, 600, 400, 200]
    tight = at(600)
    assert tight.recompute == (1, 0, 0, 0)
    assert tight.stages[0].kept_bytes == 4 * 110 + 100
    tighter = at(300)
    assert tighter.recompute == (2, 2, 2, 0)
    assert [stage.kept_bytes for stage in tighter.stages] == [240, 230, 220, 200]
    assert roomy.seconds < tight.seconds < tighter.seconds
    with pytest.raises(ValueError, match="blocks keep 240 bytes at the least"):
        at(239)
    with pytest.raises(ValueError, match="fits the memory"):
        plan([1] * 8, Machine(1.0, memory_bytes=320 + 100))


def test_memory_moves_the_cut():
    """Of the first stage two micro-batches are in flight: it holds fewer blocks."""
    size = dict(parameters=1, residuals=190, inputs=190)
    roomy = plan([1] * 6, size=size, pipe=2)
    assert roomy.cuts == (3,)
    tight = plan([1] * 6, Machine(1.0, memory_bytes=800), size=size, pipe=2)
    assert tight.cuts == (2,) and tight.recompute == (0, 0)


def test_ratios_are_those_of_the_paper():
    made = plan([1] * 16, first_ratio=0.75, cuts=even(16, 4))
    assert made.recompute == (3, 3, 1, 0)
    shifted = plan([1] * 16, first_ratio=0.75, kind="shifted", cuts=even(16, 4))
    assert shifted.recompute == (3, 3, 3, 0)
    assert [stage.in_flight for stage in shifted.stages] == [4, 3, 3, 1]


def test_a_schedule_that_orders_recomputations_has_them():
    """The table of the timeline: each stage takes 1, 1 and 2."""
    costs = [1] * 4
    for kind, time in (("1f1b", 33), ("early", 41), ("last", 39), ("shifted", 38)):
        made = plan(costs, kind=kind)
        assert made.seconds == time, kind


def test_borrowed_parameters_take_room_where_they_are_borrowed():
    made = blocks([1, 1, 1])
    made[2] = dataclasses.replace(made[2], reads=("b0",))
    apart = staged(made, between(made), Machine(1.0), micro=4, pipe=3)
    assert [stage.parameter_bytes for stage in apart.stages] == [160, 160, 160 + 80]
    one = staged(made, between(made), Machine(1.0), micro=4, pipe=1)
    assert one.stages[0].parameter_bytes == 3 * 160


def test_gradients_are_added_at_the_speed_of_the_memory():
    """Two reads and a write of 40 bytes in each block, of borrowed ones too."""
    slow = Machine(1.0, stream_bytes_per_second=10.0)
    made = blocks([1, 1, 1])
    made[2] = dataclasses.replace(made[2], reads=("b0",))
    found = staged(made, between(made), slow, micro=4, pipe=3)
    assert [stage.backward_seconds for stage in found.stages] == [14, 14, 26]
    assert [stage.forward_seconds for stage in found.stages] == [1, 1, 1]
    [alone] = staged(made, between(made), slow, micro=4, pipe=1).stages
    assert alone.backward_seconds == 3 * 14


def test_links_take_their_time():
    """What is handed on crosses each border, once each way for a micro-batch."""
    fast = plan([1] * 4, micro=1)
    slow = plan([1] * 4, Machine(1.0, link_bytes_per_second=2.0), micro=1)
    assert slow.seconds == fast.seconds + 3 * 2 * 5


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        ((2, 1), "numbers that increase, from 1 to 7"),
        ((0, 4), "numbers that increase, from 1 to 7"),
        ((4, 8), "numbers that increase, from 1 to 7"),
        ((4,), "3 stages have 2 cuts"),
        ((3, 5), "at 3 later blocks read more than what is handed on"),
    ],
)
def test_g_cuts_of_ones_own_are_checked(cuts, says):
    assert plan([1] * 8, pipe=3, cuts=(2, 5), illegal=(3,)).cuts == (2, 5)
    with pytest.raises(ValueError, match=says):
        plan([1] * 8, pipe=3, cuts=cuts, illegal=(3,))


def choose(machine, devices=4, size=None, rows=4, widths=(), **how):
    made = blocks([1] * 8, **(size or {}))
    kwargs = dict(devices=devices, micro=8, rows=rows, widths=widths)
    return candidates(made, between(made), machine, **kwargs, **how)


def test_the_mesh_follows_what_is_dear():
    """Gradients that are small ask for data, large ones for stages."""
    machine = Machine(1.0, link_bytes_per_second=100.0)
    small = best(choose(machine, size=dict(parameters=1)))
    assert (small.data, small.pipe) == (4, 1)
    large = best(choose(machine, size=dict(parameters=10_000)))
    assert (large.data, large.pipe) == (1, 4)
    assert large.mesh == "data=1,pipe=4,tensor=1"


def test_a_memory_that_is_too_small_for_copies_asks_for_stages():
    tight = Machine(1.0, memory_bytes=4 * 40 * 8 - 1)
    found = choose(tight, size=dict(residuals=1, inputs=1))
    assert best(found).pipe > 1
    [alone] = [each for each in found if each.pipe == 1 and each.data == 4]
    assert alone.plan is None and "fits the memory" in alone.reason


def test_all_shapes_are_looked_at():
    found = choose(Machine(1.0), devices=8, widths=(6, 4))
    shapes = {(each.data, each.pipe, each.tensor) for each in found}
    assert len(shapes) == len(found) == 10
    why = {(c.data, c.pipe, c.tensor): c.reason for c in found if c.plan is None}
    assert why[8, 1, 1].startswith("4 rows of a micro-batch")
    assert "tensor=4 does not divide 6" in why[1, 2, 4]
    times = [each.plan.seconds for each in found if each.plan]
    assert times == sorted(times) and len(times) >= 5


def test_nothing_known_is_not_parted():
    found = choose(Machine(1.0), devices=2)
    assert all(each.plan is None for each in found if each.tensor == 2)


@pytest.mark.parametrize("tensor", [2, 4])
def test_tensor_sums_are_paid_for(tensor):
    how = dict(devices=tensor, widths=(4,), rows=1)
    free = choose(Machine(1.0), **how)
    dear = choose(Machine(1.0, link_bytes_per_second=1.0), **how)
    free, dear = (
        next(c.plan for c in found if c.tensor == tensor) for found in (free, dear)
    )
    # 8 blocks sum 10 bytes forward and backward for each of 8 micro-batches.
    crossing = Fraction(2 * (tensor - 1), tensor) * 10
    assert dear.seconds == free.seconds + 8 * 8 * 2 * crossing


def test_what_cannot_be_planned_is_told():
    with pytest.raises(ValueError, match="both are 1 or more"):
        choose(Machine(1.0), devices=0)
    with pytest.raises(ValueError, match="no mesh can be had: .*pipe=1.*; .*pipe=4"):
        best(choose(Machine(1.0, memory_bytes=1)))
