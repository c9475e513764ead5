import pytest

from splitjax.runtime.address import check_plain, is_loopback
from splitjax.runtime.credentials import CredentialError


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:1", "LOCALHOST", "127.0.0.1:50051", "127.9.9.9", "[::1]:1", "::1"),
        *("[::ffff:127.0.0.1]:1", "ipv4:127.0.0.1:1", "ipv6:[::1]:1", "unix:a.sock"),
        *("unix:///tmp/a.sock", "unix-abstract:a", "dns:///localhost:1", "dns:::1"),
    ],
)
def test_loopback(address):
    assert is_loopback(address)
    check_plain(address, allowed=False)


@pytest.mark.parametrize(
    "address",
    [
        *("", ":1", "0.0.0.0:1", "[::]:1", "10.0.0.1:1", "cloud.example:1", "127.1:1"),
        *("localhost.example:1", "127.0.0.1.example:1", "localhost@cloud.example:1"),
        *("ipv4:127.0.0.1:1,10.0.0.1:1", "dns://10.0.0.1/localhost:1", "[::1]x:1"),
        *("[::ffff:10.0.0.1]:1", "http://localhost:1"),
    ],
)
def test_not_loopback(address):
    assert not is_loopback(address)
    with pytest.raises(CredentialError, match="plain text"):
        check_plain(address, allowed=False)
    check_plain(address, allowed=True)
