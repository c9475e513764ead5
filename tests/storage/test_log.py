import pytest

from splitjax.storage.log import Log, read


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.fixture
def folder(tmp_path):
    """A folder with the log of steps 1 to 4; step 2 has a score too."""
    log = Log(tmp_path)
    for step in (1, 2, 3, 4):
        log.write(step, loss=1 / step)
        if step == 2:
            log.write(step, dev_score=0.5)
    log.close()
    return tmp_path


def test_what_is_written_is_read(folder):
    assert [line["step"] for line in read(folder)] == [1, 2, 2, 3, 4]
    assert read(folder)[0] == {"step": 1, "loss": 1.0}
    assert read(folder)[2] == {"step": 2, "dev_score": 0.5}
    assert list((folder / "tensorboard").glob("events.*"))


def test_lines_after_the_checkpoint_are_cut_off(folder):
    whole = lines(folder)
    log = Log(folder, 2)
    assert [line["step"] for line in read(folder)] == [1, 2, 2]
    for step in (3, 4):
        log.write(step, loss=1 / step)
    log.close()
    assert lines(folder) == whole


def test_a_new_run_begins_an_empty_log(folder):
    Log(folder).close()
    assert read(folder) == [] == lines(folder)


def test_a_half_line_is_left_out(folder):
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text()[:-6])
    assert [line["step"] for line in read(folder)] == [1, 2, 2, 3]
    log = Log(folder, 4)
    log.write(4, loss=0.25)
    log.close()
    assert [line["step"] for line in read(folder)] == [1, 2, 2, 3, 4]


def test_a_line_is_on_disk_at_once(tmp_path):
    log = Log(tmp_path)
    log.write(1, loss=0.1, norm=2)
    assert read(tmp_path) == [{"step": 1, "loss": 0.1, "norm": 2.0}]
    log.close()
