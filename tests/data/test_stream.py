import numpy as np
import pytest

from splitjax.data.stream import Stream, Windows, load_stream
from splitjax.data.table import DataError


def test_each_symbol_but_the_first_is_predicted_once():
    stream = Stream("mine", "train", np.arange(12) % 11, 11)
    seen = []
    for [batch] in Windows(stream, 2, 3, seed=4).epoch(1):
        for row in range(batch["n_valid"]):
            start = 3 * batch["index"][row]
            for place in range(3):
                if batch["mask"][row, place]:
                    seen.append(start + place + 1)
                    assert batch["y"][row, place] == stream.symbols[seen[-1]]
                    assert batch["ids"][row, place] == stream.symbols[seen[-1] - 1]
                else:
                    assert batch["y"][row, place] == -1
    assert sorted(seen) == list(range(1, 12))


def test_batches_have_one_shape_and_say_what_is_filling():
    stream = Stream("mine", "train", np.arange(9), 9)
    made = Windows(stream, 2, 3)
    assert len(made) == 3 and made.steps_per_epoch() == 2
    first, last = (batch for [batch] in made.epoch(0, shuffle=False))
    assert first["ids"].shape == last["ids"].shape == (2, 3)
    assert first["ids"].dtype == first["y"].dtype == np.int32
    assert last["n_valid"] == 1 and last["index"].tolist() == [2, -1]
    assert last["y"].tolist() == [[7, 8, -1], [-1, -1, -1]]
    assert last["mask"].tolist() == [[True, True, False], [False] * 3]


def test_the_order_is_of_the_seed_and_slots_share_the_windows():
    made = Windows(Stream("mine", "train", np.zeros(101, int), 1), 4, 5, seed=1)

    def rows(epoch, **kwargs):
        steps = made.epoch(epoch, **kwargs)
        return [int(i) for [batch] in steps for i in batch["index"] if i >= 0]

    assert rows(0) == rows(0) != rows(1)
    parts = [rows(0, slot=slot, slots=2) for slot in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(20))


def test_windows_may_be_spans_and_epochs_may_have_the_same_batches():
    stream = Stream("mine", "train", np.arange(9), 9)
    made = Windows(stream, 2, 3, spans=np.array([[0, 2], [5, 8]]))
    [[batch]] = made.epoch(0, shuffle=False)
    assert batch["ids"].tolist() == [[0, 1, 0], [5, 6, 7]]
    assert batch["y"].tolist() == [[1, 2, -1], [6, 7, 8]]
    fixed = Windows(Stream("mine", "train", np.arange(90), 90), 2, 3, fixed=True)
    first, other = (
        [tuple(batch["index"]) for [batch] in fixed.epoch(number)] for number in (0, 1)
    )
    assert first != other and sorted(first) == sorted(other)


def test_a_file_is_parted_and_read_as_bytes(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(bytes(range(200)))
    parts = [load_stream(str(path), split) for split in ("train", "dev", "test")]
    assert [len(part) for part in parts] == [180, 10, 10]
    whole = np.concatenate([part.symbols for part in parts])
    assert whole.tolist() == list(range(200)) and parts[0].vocab == 256
    assert load_stream(str(path), "dev", count=3).symbols.tolist() == [180, 181, 182]


def test_a_file_is_read_as_tokens(tmp_path, tokenizer):
    path = tmp_path / "mine.txt"
    path.write_text("red dog blue cat " * 20)
    stream = load_stream(str(path), "train", tokenizer=tokenizer)
    # No special tokens stand around the text.
    assert stream.symbols[:4].tolist() == [5, 11, 6, 12] and stream.vocab == 17
    first = load_stream(str(path), "train", tokenizer=tokenizer, count=6)
    assert np.array_equal(first.symbols, stream.symbols[:6])
    # A character may be cut where the text is parted.
    path.write_text("é " * 101)
    assert len(load_stream(str(path), "dev", tokenizer=tokenizer)) == 5


def test_bad_streams_are_told(tmp_path, tokenizer):
    with pytest.raises(DataError, match="no split 'valid'"):
        load_stream("wikitext2", "valid")
    with pytest.raises(DataError, match="no corpus 'enwik9': did you mean 'enwik8'"):
        load_stream("enwik9", "train")
    path = tmp_path / "mine.txt"
    path.write_text("red dog " * 30)
    with pytest.raises(DataError, match="count=1: a stream has two"):
        load_stream(str(path), "train", count=1)
    with pytest.raises(DataError, match="fewer than 900"):
        load_stream(str(path), "train", tokenizer=tokenizer, count=900)
    made = load_stream(str(path), "train", tokenizer=tokenizer, count=900, fewer=True)
    assert len(made) == 54
    with pytest.raises(DataError, match=r"mine \(dev\) is \(1,\)"):
        Stream("mine", "dev", np.zeros(1, int), 3)
    with pytest.raises(DataError, match="symbols from 0 to 3; .* 0 to 2"):
        Stream("mine", "dev", np.arange(4), 3)
    stream = Stream("mine", "dev", np.arange(4), 4)
    with pytest.raises(ValueError, match="length=0"):
        Windows(stream, 2, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        Windows(stream, 0, 2)


@pytest.mark.real("wikitext2")
def test_the_words_of_wikitext2(need_data):
    counts = {}
    for split in ("train", "dev", "test"):
        stream = load_stream("wikitext2", split, fetch=False)
        counts[split] = len(stream.symbols.tobytes().split())
    # A word fewer for each line than its authors count: they count its end.
    assert counts == {"train": 2051910, "dev": 213886, "test": 241211}


@pytest.mark.real("enwik8")
def test_the_last_bytes_of_enwik8(need_data):
    stream = load_stream("enwik8", "test", fetch=False)
    assert len(stream) == 5_000_000 and stream.symbols.dtype == np.uint8
