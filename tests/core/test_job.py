import concurrent.futures
import threading

import jax
import numpy as np
import pytest

from splitjax.core import job
from splitjax.core.job import Disagreement, at_each, at_first, gather


@pytest.fixture
def together(monkeypatch):
    """Runs functions as the processes of a job: what each returned or raised.

    They are threads here; `test_checkpoint` has the same in processes.
    """
    own = threading.local()

    def run(*works):
        meet, given = threading.Barrier(len(works), timeout=20), {}

        def allgather(array):
            given[own.number] = array
            meet.wait()
            rows = np.stack([given[number] for number in range(len(works))])
            meet.wait()
            return rows

        def one(number, work):
            own.number = number
            try:
                return work()
            except Exception as error:
                return error

        monkeypatch.setattr(job.multihost_utils, "process_allgather", allgather)
        with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
            return list(pool.map(one, range(len(works)), works))

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: own.number)
    return run


def test_facts_of_unlike_lengths_come_in_the_order_of_processes(together):
    facts = ["é" * 40, None, {"a": [1.5]}]
    works = [lambda fact=fact: gather("a point", fact) for fact in facts]
    assert together(*works) == [facts] * 3


def test_a_process_at_another_point_is_named_to_all(together):
    works = [lambda: gather("a save"), lambda: gather("a save"), lambda: gather("home")]
    for error in together(*works):
        assert isinstance(error, Disagreement)
        assert "process 2 is at home, and process 0 at a save" in str(error)


def test_the_first_works_alone_while_the_others_wait(together):
    done = []

    def work():
        return at_first("it", lambda: done.append(jax.process_index()) or 7, OSError)

    assert together(work, work, work) == [7, None, None] and done == [0]


def test_what_one_raises_is_told_to_all(together):
    def fail():
        raise KeyError("full")

    works = [lambda w=w: at_each("it", w, OSError) for w in (int, fail, int)]
    first, second, third = together(*works)
    assert isinstance(second, KeyError)
    for error in first, third:
        assert isinstance(error, OSError)
        assert "process 1 failed at it: KeyError: 'full'" in str(error)
