import hashlib
import json

import pytest

from splitjax.runtime.credentials import CredentialError
from splitjax.runtime.guard import (
    Guard,
    Unauthenticated,
    bearer,
    read_token,
    read_tokens,
)


@pytest.mark.parametrize("text", ["", "short", "two words of a token", "é" * 30])
def test_a_token_file_holds_one_token(text, tmp_path):
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(CredentialError, match="a token is one line") as caught:
        read_token(tmp_path)
    assert not text or text not in str(caught.value)


D = "0" * 64


@pytest.mark.parametrize(
    "found",
    [
        {},
        [D],
        {"secret": 0},
        {D.upper() + "A": 0},
        {D: True},
        {D: -1},
        {D: 2**32},
        {D: "0"},
    ],
    ids=str,
)
def test_tokens_json_is_checked(found, tmp_path):
    (tmp_path / "tokens.json").write_text(json.dumps(found))
    with pytest.raises(CredentialError, match="expected"):
        read_tokens(tmp_path)
    with pytest.raises(CredentialError):
        Guard(found if isinstance(found, dict) else {}, False)


def test_tokens_json_that_is_no_json(tmp_path):
    (tmp_path / "tokens.json").write_text("[" * 100_000)
    with pytest.raises(CredentialError, match="not JSON"):
        read_tokens(tmp_path)


def test_a_guard_that_asks_for_nothing_is_refused():
    with pytest.raises(CredentialError, match="needs"):
        Guard(None, client_certificates=False)


TOKEN = "not-a-secret-but-long-enough"
GUARD = Guard({hashlib.sha256(TOKEN.encode()).hexdigest(): 7}, False)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        [("authorization", TOKEN)],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", f"Bearer {TOKEN} ")],
        [("authorization", "Bearer " + "\udcff" * 9)],
        [("authorization", f"Bearer {TOKEN}".encode())],
        [*bearer(TOKEN), *bearer(TOKEN)],
    ],
    ids=range(8),
)
def test_only_one_whole_bearer_token_is_taken(metadata):
    with pytest.raises(Unauthenticated) as caught:
        GUARD.slot(metadata, {})
    assert TOKEN not in str(caught.value)
    assert GUARD.slot([("other", "x"), *bearer(TOKEN)], {}) == 7


@pytest.mark.parametrize(
    "names",
    [
        [],
        [b"edge_1", b"edge_2"],
        *([name] for name in (b"splitjax cloud", b"edge_01", b"edge_-1", b"edge_1\n")),
        *([name] for name in (b"edge_", b"edge_4294967296", b"\xff", b"xedge_1")),
        ["edge_\u0661".encode()],
    ],
    ids=repr,
)
def test_only_names_of_edges_are_taken(names):
    guard = Guard(None, client_certificates=True)
    with pytest.raises(Unauthenticated):
        guard.slot((), {"x509_common_name": names})
    assert guard.slot((), {"x509_common_name": [b"edge_12"]}) == 12
