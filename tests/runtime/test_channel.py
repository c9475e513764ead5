"""Messages between threads, in pieces and whole again."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitjax.runtime.channel import Closed, Joiner, Mailbox, chunks, pipe


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 9))
def test_pieces_join_to_the_messages(messages, size):
    joiner = Joiner(40)
    whole = [joiner.add(p) for m in messages for p in chunks(m, size)]
    assert [m for m in whole if m is not None] == messages


@pytest.mark.parametrize(
    "pieces", [[b""], [b"\2x"], [b"\0"], [b"\0abc", b"\1d"], [b"\1abcd"]]
)
def test_pieces_without_a_mark_or_beyond_the_limit_are_refused(pieces):
    joiner = Joiner(3)
    with pytest.raises(ValueError):
        for piece in pieces:
            joiner.add(piece)


def test_what_was_sent_before_the_end_still_arrives():
    one, other = pipe()
    one.send(b"a")
    one.close()
    assert other.receive() == b"a"
    for _ in range(2):
        with pytest.raises(Closed):
            other.receive()
    with pytest.raises(Closed):
        other.send(b"b")


def test_a_wait_has_an_end():
    one, _ = pipe()
    with pytest.raises(TimeoutError):
        one.receive(0.0)


def test_an_end_wakes_who_waits_to_put_and_to_get():
    full, empty = Mailbox(1), Mailbox()
    full.put(b"a")
    seen = []

    def put():
        with pytest.raises(Closed):
            full.put(b"b")
        seen.append("put")

    def get():
        with pytest.raises(Closed, match="why"):
            empty.get()
        seen.append("get")

    threads = [threading.Thread(target=f) for f in (put, get)]
    for thread in threads:
        thread.start()
    full.end()
    empty.end(Closed("why"))
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["get", "put"]
