"""Edge and cloud over real gRPC with TLS on loopback: the same bits, and every no."""

import datetime
import os
import shutil
import socket
import ssl
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitjax.runtime.certificates import make_certificates
from splitjax.runtime.channel import CHUNK_BYTES, Closed
from splitjax.runtime.cloud import Cloud
from splitjax.runtime.control import Refused
from splitjax.runtime.credentials import (
    CredentialError,
    channel_credentials,
    server_credentials,
)
from splitjax.runtime.dial import dial
from splitjax.runtime.guard import Guard, Unauthenticated
from splitjax.runtime.server import SERVICE, Server, ServerError
from tests.runtime.conftest import batches, run_all, same
from tests.runtime.served import HOST, Echo, Served, alone, model, start

SECONDS = 30.0
WAYS = {
    "token": dict(),
    "certificate": dict(tokens=False, client_certificates=True),
    "both": dict(client_certificates=True),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Of a cloud and three edges."""
    return make_certificates(tmp_path_factory.mktemp("keys") / "keys", edges=3)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """As `keys`, of another authority."""
    return make_certificates(tmp_path_factory.mktemp("keys") / "others", edges=3)


@pytest.fixture
def served(keys, tmp_path):
    """A cloud of two slots."""
    with Served(model("plain"), tmp_path / "cloud", keys, slots=2) as made:
        yield made


def trains(served, slot=0, *, steps=2):
    """Whether a new edge gets through a run, to the right bits."""
    name = "slot 1" if slot else "plain"
    one = model(name)
    edge = one.edge(lambda: served.dial(slot))
    run, losses = run_all(edge, start(edge, one), batches(steps))
    edge.close()
    want = alone(name, steps)
    same(run.edge, want[0].edge)
    return losses == want[1]


@pytest.mark.parametrize(
    ("name", "way"), [("u", "token"), ("micro", "both"), ("plain", "certificate")]
)
def test_over_tls_an_edge_and_a_cloud_are_one_run_to_the_bit(name, way, keys, tmp_path):
    one, (want, losses, out) = model(name), alone(name, 20)
    with Served(one, tmp_path, keys, **WAYS[way]) as served:
        edge = one.edge(served.dial)
        steps = batches(20, micro=one.micro)
        run, found = run_all(edge, start(edge, one), steps, in_flight=one.micro)
        assert found == losses
        same(run.edge, want.edge)
        same(edge.predict(run, one.x), out)
        same(served.cloud._places[0].slot.lane.state[1], want.slot)
        edge.close()
    assert edge.meter.rows() == served.cloud.meter.rows()


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_told_and_the_end_of_it(service, served):
    place = served.keys / "edge_0"
    credentials = channel_credentials(place, client_certificates=False)
    with grpc.secure_channel(f"{HOST}:{served.port}", credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service=service)
        states = health_pb2.HealthCheckResponse
        assert stub.Check(asked, timeout=SECONDS).status == states.SERVING
        watch = stub.Watch(asked, timeout=SECONDS)
        assert next(watch).status == states.SERVING
        stopping = threading.Thread(target=served.stop)
        stopping.start()
        assert next(watch).status == states.NOT_SERVING
        watch.cancel()
        stopping.join()


def test_pings_that_waited_and_come_all_at_once_do_not_end_a_connection(served):
    """As a machine delivers them that stood still; each is answered, by HTTP/2."""
    size, settings, ping, goaway, ack = 8, 4, 6, 7, 1
    trusted = ssl.create_default_context(cafile=served.keys / "edge_0" / "ca.pem")
    trusted.set_alpn_protocols(["h2"])

    def framed(kind, data=b""):
        return len(data).to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 0]) + data

    with (
        socket.create_connection((HOST, served.port), timeout=SECONDS) as plain,
        trusted.wrap_socket(plain, server_hostname=HOST) as way,
        way.makefile("rb") as answers,
    ):
        way.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + framed(settings))
        for first in (0, 20):
            sent = range(first, first + 20)
            way.sendall(b"".join(framed(ping, n.to_bytes(size, "big")) for n in sent))
            found = []
            while len(found) < 20:
                head = answers.read(9)
                data = answers.read(int.from_bytes(head[:3], "big"))
                assert head[3] != goaway, data
                if head[3:5] == bytes([ping, ack]):
                    found.append(int.from_bytes(data, "big"))
            assert found == list(sent)


def test_who_does_not_show_who_it_is_is_told_so_at_once(served):
    one = model("plain")
    for token in ("not-the-token-of-anyone", ""):
        edge = one.edge(lambda token=token: served.dial(token=token))
        with pytest.raises(Unauthenticated, match="not known|0 authorization"):
            start(edge, one)
    assert trains(served)


def test_a_token_is_of_one_slot(served):
    one = model("slot 1")
    edge = one.edge(lambda: served.dial(0))
    with pytest.raises(Refused, match="is its token.*that of another edge") as caught:
        start(edge, one)
    assert caught.value.code == "slot"
    edge = one.edge(lambda: served.dial(2))
    with pytest.raises(Refused, match="no slot 2 of 2") as caught:
        start(edge, one)
    assert caught.value.code == "slot"
    assert trains(served, 1)


def test_a_cloud_of_another_authority_is_not_trusted(served, others):
    one = model("plain")
    edge = one.edge(lambda: served.dial(keys=others))
    with pytest.raises(CredentialError, match="not of an authority in ca.pem"):
        start(edge, one)
    assert trains(served)


def test_a_foreign_certificate_is_told_with_a_hint(keys, others, tmp_path):
    """The cloud only hangs up, as TLS has it, so the edge dials until it gives up."""
    one, mixed = model("plain"), tmp_path / "mixed"
    shutil.copytree(others, mixed)
    shutil.copy(keys / "edge_0" / "ca.pem", mixed / "edge_0" / "ca.pem")
    with Served(one, tmp_path / "cloud", keys, client_certificates=True) as served:
        edge = one.edge(lambda: served.dial(keys=mixed), patience_seconds=0.1)
        with pytest.raises(ConnectionError, match="client certificate of its own auth"):
            start(edge, one)
        assert trains(served)


def made_for(tmp_path, **kwargs):
    """Credentials of a cloud and of an edge, unchecked."""
    keys = make_certificates(tmp_path / "keys", **kwargs)
    files = [(keys / "cloud" / f"cloud.{end}").read_bytes() for end in ("key", "pem")]
    roots = (keys / "edge_0" / "ca.pem").read_bytes()
    return keys, grpc.ssl_server_credentials([files]), roots


LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"now": LONG_AGO}, "or out of date", id="expired"),
        pytest.param({"hosts": ["example.org"]}, "other host names", id="host"),
    ],
)
def test_a_certificate_that_does_not_hold_ends_the_edge_at_once(
    options, message, tmp_path
):
    keys, ours, roots = made_for(tmp_path, **options)
    one, guard = model("plain"), Guard(None, True)
    with Server(Echo(), f"{HOST}:0", guard, credentials=ours) as server:
        address = f"{HOST}:{server.port}"
        theirs = grpc.ssl_channel_credentials(roots)
        edge = one.edge(lambda: dial(address, credentials=theirs))
        with pytest.raises(CredentialError, match=f"{address} .*{message}"):
            start(edge, one)
    if "now" in options:  # both ends look at their own before they begin
        with pytest.raises(CredentialError, match="expired"):
            server_credentials(keys / "cloud", client_certificates=False)
        with pytest.raises(CredentialError, match="expired"):
            channel_credentials(keys / "edge_0", client_certificates=False)


def test_tls_on_one_end_only_is_told(served, keys):
    one = model("plain")
    edge = one.edge(lambda: served.dial(credentials=None), patience_seconds=0.1)
    with pytest.raises(ConnectionError, match="does only one end speak TLS"):
        start(edge, one)
    with Server(Echo(), f"{HOST}:0", Guard(None, True)) as plain:
        edge = one.edge(lambda: served.dial(port=plain.port))
        with pytest.raises(CredentialError, match="it speaks no TLS"):
            start(edge, one)


def test_plain_text_stays_on_this_machine(tmp_path):
    with pytest.raises(CredentialError, match="plain text to or from 192.0.2.1"):
        dial("192.0.2.1:50051")
    with pytest.raises(CredentialError, match="plain text to or from 0.0.0.0"):
        Server(Echo(), "0.0.0.0:0", Guard(None, True))


def test_a_busy_port_is_told(served, tmp_path):
    cloud = Cloud(None, tmp_path)
    with pytest.raises(ServerError, match=f"{HOST}:{served.port} .*in use"):
        Server(cloud, f"{HOST}:{served.port}", Guard(None, True))
    assert trains(served)


def test_a_host_that_is_not_reached_is_named(keys):
    one = model("plain")
    credentials = channel_credentials(keys / "edge_0", client_certificates=False)

    def edge(address):
        patience = dict(deadline_seconds=0.1, patience_seconds=0.1)
        return one.edge(lambda: dial(address, credentials=credentials), **patience)

    with socket.create_server((HOST, 0)) as silent:  # takes, and says nothing
        address = f"{HOST}:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"{address}: no message within"):
            start(edge(address), one)
    with pytest.raises(ConnectionError, match=f"{address}: .*the firewall"):
        start(edge(address), one)  # and now nobody listens


def test_a_cloud_that_stops_and_comes_back_changes_nothing(keys, tmp_path):
    one, (want, losses, _) = model("u"), alone("u", 9)
    stop, back = threading.Event(), threading.Event()

    def steps():
        for number, step in enumerate(batches(9)):
            if number == 2:
                stop.set()
            if number == 7:
                assert back.wait(SECONDS)  # at the latest; it may come back before
            yield step

    def restart():
        stop.wait(SECONDS)
        served.stop()
        served.start()
        back.set()

    with Served(one, tmp_path, keys) as served:
        before = served.cloud
        edge = one.edge(served.dial)
        run = start(edge, one)
        other = threading.Thread(target=restart)
        other.start()
        run, found = run_all(edge, run, steps())
        other.join()
        edge.close()
        assert found == losses
        same(run.edge, want.edge)
        assert served.cloud is not before
        assert 2 <= before.status()[0].tick < 9
        same(served.cloud._places[0].slot.lane.state[1], want.slot)


@pytest.fixture
def echo(keys, tmp_path):
    """A cloud that sends back what it gets; at most 3 chunks in a message."""
    options = dict(max_message_bytes=3 * CHUNK_BYTES)
    with Served(None, tmp_path, keys, cloud=Echo(), server=options) as made:
        yield made


def test_messages_of_any_length_are_one_message(echo):
    channel = echo.dial()
    sizes = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]
    for size in sizes:
        message = os.urandom(size)
        channel.send(message)
        assert channel.receive(SECONDS) == message
    channel.close()


def test_a_message_above_the_limit_ends_that_session_only(echo):
    channel, other = echo.dial(), echo.dial()
    channel.send(bytes(3 * CHUNK_BYTES + 1))
    with pytest.raises(Closed):
        channel.receive(SECONDS)
    [error] = echo.cloud.refused
    assert f"at most {3 * CHUNK_BYTES} are taken" in str(error)
    other.send(b"on")
    assert other.receive(SECONDS) == b"on"
    channel.close()
    other.close()


def test_an_edge_whose_message_is_too_long_is_told_so(keys, tmp_path):
    one = model("plain")
    with Served(one, tmp_path, keys, server=dict(max_message_bytes=300)) as served:
        edge = one.edge(served.dial, facts={"note": 300 * "a"})
        with pytest.raises(Refused, match="at most 300 are taken") as caught:
            start(edge, one)
        assert caught.value.code == "BadPiece"
