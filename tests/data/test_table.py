import numpy as np
import pytest

from splitjax.data.table import DataError, Table


def table(label, classes=2, text_b=None, count=None):
    texts = [f"text {i}" for i in range(len(label) if count is None else count)]
    return Table("mine", "train", texts, text_b, np.array(label), classes)


def test_labels_get_the_type_of_their_kind():
    assert table([0, 1]).label.dtype == np.int32
    assert table([0, 1], classes=0).label.dtype == np.float32
    assert table([0.0, 1.0]).label.dtype == np.int32


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match=r"mine \(train\) is empty"):
        table([])
    with pytest.raises(DataError, match="is empty"):
        table([0, 1]).take(0)


def test_columns_of_unlike_length_are_refused():
    with pytest.raises(DataError, match=r"unlike lengths \[2, 3\]"):
        table([0, 1], count=3)
    with pytest.raises(DataError, match=r"unlike lengths \[1, 2\]"):
        table([0, 1], text_b=["one"])


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        ([0, 2, 5], 2, "row 1 has the label 2, not a class from 0 to 1; 2 rows"),
        ([0, -1], 2, "row 1 has the label -1"),
        ([0.0, 0.5], 2, "row 1 has the label 0.5, not a class"),
        ([np.nan, 1.0], 2, "row 0 has the label nan, not a class"),
        ([1.0, np.inf], 0, "row 1 has the label inf, not a finite number"),
    ],
)
def test_a_bad_label_is_named(label, classes, message):
    with pytest.raises(DataError, match=message):
        table(label, classes)


def test_rows_are_picked_with_all_their_columns():
    picked = table([0, 1, 1], text_b=["a", "b", "c"]).pick(np.array([1, 0, 1]) > 0)
    assert picked.text_a == ["text 0", "text 2"]
    assert picked.text_b == ["a", "c"] and picked.label.tolist() == [0, 1]
    assert picked.classes == 2 and len(picked) == 2
