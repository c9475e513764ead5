"""Jobs are begun ahead, finished in order, and no more are under way than may be."""

import pytest

from splitjax.runtime.overlap import overlapped


def told(seen, count, pauses=1):
    def job(name):
        seen.append(f"+{name}")
        for _ in range(pauses):
            yield
        seen.append(f"-{name}")
        return name

    return (job(name) for name in range(count))


@pytest.mark.parametrize(
    ("in_flight", "want"),
    [
        (1, "+0 -0 +1 -1 +2 -2"),
        (2, "+0 +1 -0 +2 -1 -2"),
        (9, "+0 +1 +2 -0 -1 -2"),
    ],
)
@pytest.mark.parametrize("pauses", [1, 3])
def test_the_order_of_work(in_flight, want, pauses):
    seen = []
    assert list(overlapped(told(seen, 3, pauses), in_flight)) == [0, 1, 2]
    assert " ".join(seen) == want


def test_nothing_is_begun_before_it_is_asked_for():
    seen = []
    results = overlapped(told(seen, 3), 2)
    assert not seen
    assert next(results) == 0 and seen == ["+0", "+1", "-0"]


def test_a_job_that_waits_for_nothing_is_done_at_once():
    seen = []
    assert list(overlapped(told(seen, 2, pauses=0), 2)) == [0, 1]
    assert seen == ["+0", "-0", "+1", "-1"]


def test_no_jobs_give_nothing():
    assert list(overlapped(iter(()), 2)) == []
