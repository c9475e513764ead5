import numpy as np
import pytest

from splitjax.data.synthetic import toy
from splitjax.data.table import DataError, Table
from splitjax.data.tokenize import SequenceTooLong, Tokenizer

CLS, SEP = 2, 3
# red: 5, blue: 6, dog: 11, cat: 12


def table(first, second=None):
    return Table("mine", "train", first, second, np.zeros(len(first)), 0)


def test_one_text_is_one_sequence_without_padding(tokenizer):
    encoded = tokenizer.encode(table(["red dog", "blue"]))
    assert [ids.tolist() for ids in encoded.ids[0]] == [
        [CLS, 5, 11, SEP],
        [CLS, 6, SEP],
    ]
    assert encoded.ids[0][0].dtype == np.int32 and encoded.types is None
    assert encoded.lengths().tolist() == [4, 3] and len(encoded) == 2


def test_two_texts_are_one_sequence_with_types(tokenizer):
    encoded = tokenizer.encode(table(["red dog"], ["blue"]))
    [ids], [types] = encoded.ids[0], encoded.types
    assert ids.tolist() == [CLS, 5, 11, SEP, 6, SEP]
    assert types.tolist() == [0, 0, 0, 0, 1, 1]


def test_two_towers_are_read_apart(tokenizer):
    encoded = tokenizer.encode(table(["red dog"], ["blue"]), towers=True)
    assert [tower[0].tolist() for tower in encoded.ids] == [
        [CLS, 5, 11, SEP],
        [CLS, 6, SEP],
    ]
    assert encoded.types is None and encoded.lengths().tolist() == [4]
    with pytest.raises(DataError, match="no second text"):
        tokenizer.encode(table(["red"]), towers=True)


def test_long_texts_are_cut_the_longer_one_first(tokenizer):
    one = tokenizer.encode(table(["red dog cat blue"]), max_length=4)
    assert one.ids[0][0].tolist() == [CLS, 5, 11, SEP] and one.max_length == 4
    two = tokenizer.encode(table(["red dog cat blue"], ["blue"]), max_length=6)
    assert two.ids[0][0].tolist() == [CLS, 5, 11, SEP, 6, SEP]


def test_a_long_text_is_refused_where_none_may_be_cut(tokenizer):
    rows = table(["red", "red dog cat"])
    with pytest.raises(
        SequenceTooLong, match=r"mine \(train\): row 1 has 5 tokens.* 4"
    ):
        tokenizer.encode(rows, max_length=4, truncate=False)
    assert tokenizer.encode(rows, max_length=5, truncate=False).lengths().max() == 5
    # What an earlier call cut is whole again.
    tokenizer.encode(rows, max_length=3)
    assert tokenizer.encode(rows, truncate=False).lengths().max() == 5


def test_a_folder_without_a_tokenizer_is_told(tmp_path):
    with pytest.raises(DataError, match="there is no .*tokenizer.json"):
        Tokenizer(tmp_path)


def test_the_toy_task_is_as_it_says(tokenizer):
    one, two = toy(rows=20), toy(rows=20, pairs=True)
    assert one.text_a == toy(rows=20).text_a != toy("dev", rows=20).text_a
    firsts = [text.split()[0] == "red" for text in one.text_a]
    assert firsts == one.label.astype(bool).tolist() and len(set(firsts)) == 2
    assert 0 <= two.label.min() < two.label.max() <= 5
    unknown = 1
    assert all(unknown not in ids for ids in tokenizer.encode(one).ids[0])


@pytest.mark.real("minilm")
def test_minilm_reads_as_it_was_taught(need_data):
    tokenizer = Tokenizer(need_data("minilm"))
    texts = ["A man is playing a guitar.", "guitar"]
    encoded = tokenizer.encode(table(texts))
    want = [101, 1037, 2158, 2003, 2652, 1037, 2858, 1012, 102]
    assert encoded.ids[0][0].tolist() == want
    # Its file asks for padding and cutting at 128 tokens: neither is done.
    assert encoded.ids[0][1].tolist() == [101, 2858, 102]
    long = tokenizer.encode(table(["guitar " * 200]), truncate=False, max_length=256)
    assert long.lengths().tolist() == [202]
