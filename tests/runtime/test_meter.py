import json
import threading

import pytest

from splitjax.runtime.meter import Meter


@pytest.fixture
def meter():
    meter = Meter()
    meter.add("edge_0", "up", "act", 100)
    meter.add("edge_0", "up", "act", 50)
    meter.add("edge_0", "down", "grad", 7)
    meter.add("edge_1", "up", "setup", 1000)
    return meter


def test_totals_are_by_direction(meter):
    assert meter.totals() == {
        "bytes_up": 1150,
        "frames_up": 3,
        "bytes_down": 7,
        "frames_down": 1,
    }
    assert meter.totals(kind="setup")["bytes_up"] == 1000
    assert meter.totals(link="edge_0")["frames_up"] == 2
    assert meter.totals(link="edge_0", kind="setup")["bytes_up"] == 0


def test_rows_survive_json_and_merge(meter):
    copy = Meter().merge(json.loads(json.dumps(meter.rows())))
    assert copy.rows() == meter.rows()
    assert copy.merge(meter).totals()["bytes_up"] == 2 * 1150


def test_it_can_be_merged_with_itself(meter):
    assert meter.merge(meter).totals()["bytes_up"] == 2 * 1150


def test_no_count_is_lost_between_threads():
    meter = Meter()

    def work():
        for _ in range(1000):
            meter.add("edge_0", "up", "act", 3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.totals()["bytes_up"] == 12000


def test_wrong_words_and_negative_counts_raise(meter):
    with pytest.raises(ValueError, match="sideways"):
        meter.add("edge_0", "sideways", "act", 1)
    with pytest.raises(ValueError, match="only grow"):
        meter.add("edge_0", "up", "act", -1)
