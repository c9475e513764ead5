import contextlib

import numpy as np
import pytest

from splitjax.runtime.ledger import CAME, WENT, Ledger
from splitjax.storage.checkpoint import CheckpointError
from splitjax.storage.lock import InUse

CONFIG = {"rank": 8}


def open_ledger(folder, config=CONFIG):
    return contextlib.closing(Ledger(folder, config))


def tree(value):
    return {"w": np.full(2, value, np.float32)}


def test_a_checkpoint_begins_a_new_journal(tmp_path):
    with open_ledger(tmp_path) as ledger:
        assert ledger.fresh
        ledger.save(0, tree(0), {"tick": 0})
        ledger.write(CAME, b"a")
        ledger.save(2, tree(2), {"tick": 4})
        ledger.write(CAME, b"b")
        ledger.write(WENT, b"c")
    with open_ledger(tmp_path) as ledger:
        assert not ledger.fresh
        found, facts = ledger.load(tree(9))
        assert found["w"].tolist() == [2, 2] and facts == {"tick": 4}
        assert [(kind, data) for _, kind, data in ledger] == [
            (CAME, b"b"),
            (WENT, b"c"),
        ]
        assert [ledger.read(place) for place, _, _ in ledger] == [b"b", b"c"]
    assert len(list((tmp_path / "journal").iterdir())) == 1


def test_rewind_forgets_what_came_after_the_checkpoint(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.save(0, tree(0), {})
        ledger.write(CAME, b"a")
        ledger.rewind()
        assert list(ledger) == []
        ledger.write(CAME, b"b")
    with open_ledger(tmp_path) as ledger:
        assert [data for *_, data in ledger] == [b"b"]


def test_a_folder_has_one_ledger_and_one_config(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.save(0, tree(0), {})
        with pytest.raises(InUse):
            Ledger(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match="rank: 8 there, 9 now"):
        Ledger(tmp_path, {"rank": 9})
    with open_ledger(tmp_path):
        pass
