import pytest

from splitjax.parallel.schedule import KINDS, Op, needed, schedule, walk


def texts(lists):
    return [" ".join(map(str, ops)) for ops in lists]


def test_1f1b_warms_up_by_the_distance_to_the_end():
    assert texts(schedule(3, 4, recompute=False)) == [
        "F0 F1 F2 G0 B0 F3 G1 B1 G2 B2 G3 B3",
        "F0 F1 G0 B0 F2 G1 B1 F3 G2 B2 G3 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_gpipe_goes_forward_and_then_backward():
    assert texts(schedule(2, 2, "gpipe")) == [
        "F0 F1 G0 R0 B0 G1 R1 B1",
        "F0 F1 R0 B0 R1 B1",
    ]


def test_early_recomputes_before_the_wait_where_it_cools_down():
    assert texts(schedule(3, 3, "early")) == [
        "F0 F1 F2 G0 R0 B0 R1 G1 B1 R2 G2 B2",
        "F0 F1 G0 R0 B0 F2 G1 R1 B1 R2 G2 B2",
        "F0 R0 B0 F1 R1 B1 F2 R2 B2",
    ]


def test_last_keeps_at_the_last_stage_and_hurries_before_it():
    assert texts(schedule(3, 3, "last")) == [
        "F0 F1 F2 G0 R0 B0 R1 G1 B1 R2 G2 B2",
        "F0 F1 R0 G0 B0 F2 G1 R1 B1 R2 G2 B2",
        "F0 B0 F1 B1 F2 B2",
    ]


def test_shifted_makes_its_third_forward_before_its_first_backward():
    lists = texts(schedule(3, 4, "shifted"))
    assert lists == [
        "F0 F1 F2 R0 G0 B0 F3 G1 R1 B1 R2 G2 B2 R3 G3 B3",
        "F0 F1 F2 R0 G0 B0 R1 G1 B1 F3 G2 R2 B2 R3 G3 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_a_stage_that_keeps_all_recomputes_nothing():
    first, second, _ = texts(schedule(3, 4, "shifted", recompute=[True, False, True]))
    assert "R" in first and "R" not in second
    assert second.startswith("F0 F1 F2 G0 B0 G1 B1 F3")


@pytest.mark.parametrize(
    ("kind", "recompute"),
    [*((kind, True) for kind in KINDS), ("gpipe", False), ("1f1b", False)],
)
def test_no_list_waits_for_ever(kind, recompute):
    """Of 1 to 8 stages and 1 to 32 micro-batches; each operation is done once."""
    for stages in range(1, 9):
        for micro in range(1, 33):
            if kind == "shifted" and (micro < stages or micro < 4):
                continue
            lists = schedule(stages, micro, kind, recompute=recompute)
            order = list(walk(lists))
            place = {each: number for number, each in enumerate(order)}
            for each, number in place.items():
                need = needed(*each)
                assert need is None or place[need] < number
            for stage, ops in enumerate(lists):
                assert [op for s, op in order if s == stage] == list(ops)
                for which in "FB":
                    done = [op.micro for op in ops if op.kind == which]
                    assert done == list(range(micro))


def test_lists_that_wait_for_each_other_are_told():
    """The first waits for a gradient before it sends what that one needs."""
    f, g, b = (lambda i, k=k: Op(k, i) for k in "FGB")
    first = [f(0), g(0), b(0), f(1), g(1), b(1)]
    last = [f(0), f(1), b(0), b(1)]
    with pytest.raises(ValueError, match="stage 0 at G0, stage 1 at F1"):
        list(walk([first, last]))


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ("B0 F0", "stage 0 must do F0 B0 in this order.*B0 F0"),
        ("F0", "stage 0 must do F0 B0"),
        ("F0 F0 B0", "twice"),
        ("R0 F0 B0", "R0, if at all, before B0"),
        ("F0 B0 R0", "R0, if at all, before B0"),
        ("F0 B0 B1", "B1 without F1"),
        ("F0 G0 B0", "waits for nobody"),
    ],
)
def test_lists_of_your_own_are_checked(ops, message):
    one = [Op(word[0], int(word[1:])) for word in ops.split()]
    with pytest.raises(ValueError, match=message):
        list(walk([one]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(stages=0, micro=4), "1 or more"),
        (dict(stages=2, micro=0), "1 or more"),
        (dict(stages=2, micro=4, kind="1F1B"), "did you mean '1f1b'"),
        (dict(stages=6, micro=5, kind="shifted"), "6 micro-batches or more: 5"),
        (dict(stages=2, micro=3, kind="shifted"), "4 micro-batches or more: 3"),
        (dict(stages=3, micro=4, recompute=[True]), "recompute names 1"),
        (dict(stages=3, micro=4, kind="early", recompute=False), "kind='1f1b'"),
        (
            dict(stages=2, micro=4, kind="last", recompute=[False, True]),
            "no stage recomputes",
        ),
    ],
)
def test_a_wrong_schedule_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        schedule(**how)
