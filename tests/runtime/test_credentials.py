"""Certificates, tokens and the guard, over a real server on loopback."""

import contextlib
import datetime
import os
import stat
import subprocess
import sys
from concurrent import futures

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from splitjax.runtime.certificates import make_certificates
from splitjax.runtime.credentials import (
    MAKE,
    CredentialError,
    channel_credentials,
    server_credentials,
)
from splitjax.runtime.guard import (
    MAX_TOKEN_BYTES,
    Guard,
    Unauthenticated,
    bearer,
    read_token,
    read_tokens,
)

LONG = 30  # seconds until a call that hangs is a failure; none comes near it
METHOD = "/test/slot"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """For localhost and 127.0.0.1, with two edges."""
    return make_certificates(tmp_path_factory.mktemp("room") / "keys", edges=2)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Of another authority, for another host."""
    folder = tmp_path_factory.mktemp("room") / "foreign"
    return make_certificates(folder, hosts=("cloud.example",), edges=2)


@pytest.fixture
def copy(keys, tmp_path):
    """A function: a copy of one folder of `keys`, to spoil."""

    def make(name):
        place = tmp_path / name
        place.mkdir()
        for path in (keys / name).iterdir():
            new = place / path.name
            new.write_bytes(path.read_bytes())
            new.chmod(stat.S_IMODE(path.stat().st_mode))
        return place

    return make


@contextlib.contextmanager
def serving(folder, *, client_certificates=False, tokens=False):
    """A server that answers the slot of its caller; gives its port."""
    guard = Guard(read_tokens(folder) if tokens else None, client_certificates)

    def answer(_, context):
        try:
            slot = guard.slot(context.invocation_metadata(), context.auth_context())
        except Unauthenticated as error:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        return b"%d" % slot

    handler = grpc.unary_unary_rpc_method_handler(answer)  # raw bytes both ways
    credentials = server_credentials(folder, client_certificates=client_certificates)
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test", {"slot": handler})]
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(LONG).wait(LONG)


def ask(port, folder, *, client_certificates=False, token=None, options=()):
    """The slot that the server finds for us."""
    credentials = channel_credentials(folder, client_certificates=client_certificates)
    address = f"127.0.0.1:{port}"
    with grpc.secure_channel(address, credentials, options) as channel:
        metadata = None if token is None else bearer(token)
        call = channel.unary_unary(METHOD)
        return int(call(b"", timeout=LONG, metadata=metadata))


def refusal(port, folder, **kwargs):
    with pytest.raises(grpc.RpcError) as caught:
        ask(port, folder, **kwargs)
    return caught.value


def test_a_token_opens_its_slot_and_no_other(keys):
    tokens = [read_token(keys / f"edge_{slot}") for slot in (0, 1)]
    with serving(keys / "cloud", tokens=True) as port:
        for slot, token in enumerate(tokens):
            assert ask(port, keys / f"edge_{slot}", token=token) == slot
        for wrong in (None, "", tokens[0][:-1], "x" * (MAX_TOKEN_BYTES + 1)):
            error = refusal(port, keys / "edge_0", token=wrong)
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            assert not wrong or wrong not in error.details()
        assert ask(port, keys / "edge_0", token=tokens[0]) == 0  # it keeps serving


def test_a_certificate_opens_its_slot_and_no_other(keys, foreign):
    with serving(keys / "cloud", client_certificates=True) as port:
        for slot in (0, 1):
            edge = keys / f"edge_{slot}"
            assert ask(port, edge, client_certificates=True) == slot
        error = refusal(port, keys / "edge_0")  # shows none
        assert error.code() == grpc.StatusCode.UNAVAILABLE


def test_a_foreign_edge_is_refused(keys, foreign, copy):
    # It trusts our cloud, but another authority has signed its own certificate.
    place = copy("edge_0")
    for name in ("edge.pem", "edge.key"):
        (place / name).write_bytes((foreign / "edge_0" / name).read_bytes())
    with serving(keys / "cloud", client_certificates=True) as port:
        error = refusal(port, place, client_certificates=True)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert ask(port, keys / "edge_1", client_certificates=True) == 1


def test_the_certificate_of_the_cloud_is_not_one_of_an_edge(keys, copy):
    place = copy("edge_0")
    for name in ("pem", "key"):
        (place / f"edge.{name}").write_bytes(
            (keys / f"cloud/cloud.{name}").read_bytes()
        )
    with serving(keys / "cloud", client_certificates=True) as port:
        error = refusal(port, place, client_certificates=True)
        assert error.code() == grpc.StatusCode.UNAVAILABLE


def test_a_foreign_cloud_is_refused(keys, foreign):
    with serving(foreign / "cloud", tokens=True) as port:
        name = [("grpc.ssl_target_name_override", "cloud.example")]
        token = read_token(keys / "edge_0")
        error = refusal(port, keys / "edge_0", token=token, options=name)
        assert error.code() == grpc.StatusCode.UNAVAILABLE


def test_a_cloud_of_another_name_is_refused(foreign):
    token = read_token(foreign / "edge_1")
    with serving(foreign / "cloud", tokens=True) as port:
        error = refusal(port, foreign / "edge_1", token=token)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        name = [("grpc.ssl_target_name_override", "cloud.example")]
        assert ask(port, foreign / "edge_1", token=token, options=name) == 1


def test_with_both_both_must_name_one_slot(keys):
    both = {"client_certificates": True, "tokens": True}
    with serving(keys / "cloud", **both) as port:
        token = read_token(keys / "edge_1")
        assert ask(port, keys / "edge_1", client_certificates=True, token=token) == 1
        for slot, shown in ((0, token), (1, None)):
            edge = keys / f"edge_{slot}"
            error = refusal(port, edge, client_certificates=True, token=shown)
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(("shift", "word"), [(-60, "expired"), (60, "not valid yet")])
def test_dates_are_checked_before_grpc(shift, word, tmp_path):
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=shift)
    folder = make_certificates(tmp_path / "keys", now=now, days=30)
    until = (now + datetime.timedelta(days=30)).strftime("%Y-%m-%d")
    for check, name in ((server_credentials, "cloud"), (channel_credentials, "edge_0")):
        with pytest.raises(CredentialError, match=f"{word}.*{until}") as caught:
            check(folder / name, client_certificates=True)
        assert MAKE in str(caught.value)


@pytest.mark.parametrize("name", ["ca.pem", "edge.pem", "edge.key"])
@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "No such file"), (b"", "in PEM"), (b"\x00\xff" * 99, "in PEM")],
    ids=["missing", "empty", "noise"],
)
def test_spoiled_files_are_named(name, data, message, copy):
    place = copy("edge_0")
    if data is None:
        (place / name).unlink()
    else:
        (place / name).write_bytes(data)
    with pytest.raises(CredentialError, match=f"{name}.*{message}"):
        channel_credentials(place, client_certificates=True)


def test_a_key_of_another_certificate_is_refused(keys, copy):
    place = copy("cloud")
    (place / "cloud.key").write_bytes((keys / "edge_0" / "edge.key").read_bytes())
    with pytest.raises(CredentialError, match="not the key of the certificate"):
        server_credentials(place, client_certificates=False)


def test_a_key_with_a_password_is_refused(copy):
    place = copy("cloud")
    key = load_pem_private_key((place / "cloud.key").read_bytes(), None)
    lock = BestAvailableEncryption(b"secret")
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
    (place / "cloud.key").write_bytes(locked)
    with pytest.raises(CredentialError, match="no plain key"):
        server_credentials(place, client_certificates=False)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620], ids=oct)
def test_secrets_open_to_others_are_refused(mode, copy):
    place = copy("edge_0")
    for name in ("edge.key", "token"):
        (place / name).chmod(mode)
    with pytest.raises(CredentialError, match="chmod 600"):
        channel_credentials(place, client_certificates=True)
    with pytest.raises(CredentialError, match="chmod 600"):
        read_token(place)
    channel_credentials(place, client_certificates=False)  # reads neither


def test_the_folder_above_is_not_the_folder(keys):
    with pytest.raises(CredentialError, match="did you mean .*cloud"):
        server_credentials(keys, client_certificates=False)
    with pytest.raises(CredentialError, match="did you mean .*edge_0"):
        channel_credentials(keys, client_certificates=False)


def test_grpc_and_cryptography_wait_until_they_are_used():
    code = (
        "import sys, splitjax.runtime.guard, splitjax.runtime.address\n"
        "sys.exit(bool({'grpc', 'cryptography'} & set(sys.modules)))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
