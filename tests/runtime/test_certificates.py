import datetime
import hashlib
import stat

import pytest
from cryptography import x509

from splitjax.runtime import certificates
from splitjax.runtime.certificates import make_certificates
from splitjax.runtime.credentials import CredentialError
from splitjax.runtime.guard import read_token, read_tokens


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """For localhost and 127.0.0.1, with two edges."""
    return make_certificates(tmp_path_factory.mktemp("room") / "keys", edges=2)


def test_what_goes_where(keys):
    files = {
        str(path.relative_to(keys)): stat.S_IMODE(path.stat().st_mode)
        for path in keys.rglob("*")
        if path.is_file()
    }
    secret = {name for name, mode in files.items() if mode == 0o600}
    edges = {f"edge_{k}/{name}" for k in (0, 1) for name in ("edge.key", "token")}
    assert secret == edges | {
        "authority/ca.key",
        "cloud/cloud.key",
        "cloud/tokens.json",
    }
    assert set(files) - secret == {
        *(".gitignore", "authority/ca.pem", "cloud/ca.pem", "cloud/cloud.pem"),
        *(f"edge_{k}/{name}.pem" for k in (0, 1) for name in ("ca", "edge")),
    }
    assert {stat.S_IMODE(keys.stat().st_mode)} == {0o700}
    tokens = [read_token(keys / f"edge_{k}") for k in (0, 1)]
    assert len(set(tokens)) == 2 and min(map(len, tokens)) == 43  # 256 bits
    digests = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    assert read_tokens(keys / "cloud") == {digests[0]: 0, digests[1]: 1}
    everywhere = b"".join(p.read_bytes() for p in (keys / "cloud").iterdir())
    assert not any(token.encode() in everywhere for token in tokens)


def test_certificates_say_what_they_are_for(keys):
    def load(name):
        return x509.load_pem_x509_certificate((keys / name).read_bytes())

    ca, cloud = load("authority/ca.pem"), load("cloud/cloud.pem")
    edge = load("edge_1/edge.pem")
    for one in (ca, cloud, edge):
        one.verify_directly_issued_by(ca)
        limit = one.extensions.get_extension_for_class(x509.BasicConstraints)
        assert limit.critical and limit.value.ca == (one is ca)
        assert one.extensions.get_extension_for_class(x509.KeyUsage).critical
        assert one.public_key().curve.name == "secp256r1"
        held = one.not_valid_after_utc - one.not_valid_before_utc
        assert held == datetime.timedelta(days=30, hours=1)
    assert edge.subject.rfc4514_string() == "CN=edge_1"
    hosts = cloud.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in hosts.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1"
    ]
    with pytest.raises(x509.ExtensionNotFound):
        edge.extensions.get_extension_for_class(x509.SubjectAlternativeName)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hosts": ()}, "one name or more"),
        ({"hosts": "localhost"}, "a sequence of"),
        ({"hosts": ("cloud.lan:50051",)}, "without a port"),
        ({"hosts": ("a b",)}, "a DNS name"),
        ({"edges": 0}, "edges=0"),
        ({"days": -1}, "days=-1"),
    ],
    ids=str,
)
def test_senseless_wishes_make_nothing(kwargs, message, tmp_path):
    with pytest.raises(CredentialError, match=message):
        make_certificates(tmp_path / "keys", **kwargs)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "keys").mkdir()
    with pytest.raises(CredentialError, match="exists already"):
        make_certificates(tmp_path / "keys")
    assert not list((tmp_path / "keys").iterdir())


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(path, data, mode):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(certificates, "_write", full)
    with pytest.raises(OSError, match="No space"):
        make_certificates(tmp_path / "keys")
    assert not list(tmp_path.iterdir())
