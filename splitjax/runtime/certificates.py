"""Certificates and tokens for development: one authority, one cloud, its edges."""

import datetime
import hashlib
import ipaddress
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from splitjax.runtime.credentials import CredentialError

EARLY = datetime.timedelta(hours=1)  # the clock of an edge may be behind
MAX_EDGES = 10_000
TOKEN_BYTES = 32
DNS_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.I)


class _Pair(NamedTuple):
    """A private key and the certificate of it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make_certificates(
    folder: str | os.PathLike[str],
    *,
    hosts: Sequence[str] = ("localhost", "127.0.0.1"),
    edges: int = 1,
    days: float = 30,
    now: datetime.datetime | None = None,
) -> pathlib.Path:
    """Makes a folder with all that a cloud and its edges show each other.

    `cloud/` goes to the cloud's host and `edge_K/` to the host of edge K. `authority/`
    goes to neither: its key can make a certificate for any edge. The cloud holds only
    the digests of the tokens. Keys are of the curve P-256. A key and a token are
    created with mode 0600, and the folder appears only once it is whole.

    Args:
      folder: to make; nothing may be there.
      hosts: names and IP addresses by which edges reach the cloud, without a port.
      edges: how many, K; edge 0 may touch slot 0, and so on.
      days: how long the certificates hold. They begin an hour early.
      now: the time of issue, by default this moment; another one is for tests.

    Returns:
      The folder.

    Raises:
      CredentialError: when the folder exists, or an argument makes no sense.

    Example:
      >>> with tempfile.TemporaryDirectory() as room:
      ...     folder = make_certificates(pathlib.Path(room, "keys"), edges=2)
      ...     sorted(path.name for path in folder.iterdir())
      ...     sorted(path.name for path in (folder / "edge_1").iterdir())
      ['.gitignore', 'authority', 'cloud', 'edge_0', 'edge_1']
      ['ca.pem', 'edge.key', 'edge.pem', 'token']
    """
    folder = pathlib.Path(folder)
    if isinstance(hosts, str) or not hosts:
        raise CredentialError(f"hosts={hosts!r}: a sequence of one name or more")
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    if not 1 <= edges <= MAX_EDGES:
        raise CredentialError(f"{edges=}: from 1 to {MAX_EDGES}")
    if not 0 < days <= 3650:
        raise CredentialError(f"{days=}: more than 0, at most 3650")
    if os.path.lexists(folder):
        raise CredentialError(f"{folder}: exists already; name a new folder")
    now = now or datetime.datetime.now(datetime.UTC)
    dates = (now - EARLY, now + datetime.timedelta(days=days))
    folder.parent.mkdir(parents=True, exist_ok=True)
    room = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)
    try:
        _fill(pathlib.Path(room), names, edges, dates)
        os.rename(room, folder)
    except BaseException:
        shutil.rmtree(room, ignore_errors=True)
        raise
    return folder


def _fill(
    room: pathlib.Path, names: x509.SubjectAlternativeName, edges: int, dates: Any
) -> None:
    # A name of its own, so that a mix of two authorities shows in an error.
    title = f"splitjax development authority {secrets.token_hex(4)}"
    authority = _issue(title, dates, _usage(sign=True))
    use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    cloud = _issue(
        "splitjax cloud", dates, [*_usage(), (use, False), (names, False)], authority
    )
    use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    tokens = {}
    for slot in range(edges):
        edge = _issue(f"edge_{slot}", dates, [*_usage(), (use, False)], authority)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        tokens[hashlib.sha256(token.encode()).hexdigest()] = slot
        place = _folder(room / f"edge_{slot}", "edge", edge, authority)
        _write(place / "token", token.encode() + b"\n", 0o600)
    place = _folder(room / "cloud", "cloud", cloud, authority)
    _write(place / "tokens.json", json.dumps(tokens, indent=2).encode() + b"\n", 0o600)
    _folder(room / "authority", "ca", authority, authority)
    _write(room / ".gitignore", b"*\n", 0o644)  # keys belong in no history


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if len(host) > 253 or not DNS_NAME.fullmatch(host):
            raise CredentialError(
                f"host {host!r}: a DNS name or an IP address, without a port"
            ) from None
        return x509.DNSName(host)


def _usage(*, sign: bool = False) -> list[tuple[x509.ExtensionType, bool]]:
    """What a key is for: to sign certificates, or to show who one is."""
    names = (
        *("digital_signature", "content_commitment", "key_encipherment"),
        *("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
        *("encipher_only", "decipher_only"),
    )
    on = {"key_cert_sign", "crl_sign"} if sign else {"digital_signature"}
    usage = x509.KeyUsage(**{name: name in on for name in names})
    # Path length 0: what the authority signs can sign nothing further.
    limit = x509.BasicConstraints(ca=sign, path_length=0 if sign else None)
    return [(limit, True), (usage, True)]


def _issue(
    name: str,
    dates: tuple[datetime.datetime, datetime.datetime],
    extensions: list[tuple[x509.ExtensionType, bool]],
    by: _Pair | None = None,
) -> _Pair:
    """A new key and its certificate, signed by `by` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = key if by is None else by.key
    issuer = own if by is None else by.certificate.subject
    ours, theirs = key.public_key(), signer.public_key()
    builder = (
        x509.CertificateBuilder(issuer, own)
        .public_key(ours)
        .serial_number(x509.random_serial_number())
        .not_valid_before(dates[0])
        .not_valid_after(dates[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ours), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(theirs), False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return _Pair(key, builder.sign(signer, hashes.SHA256()))


def _folder(
    place: pathlib.Path, name: str, pair: _Pair, authority: _Pair
) -> pathlib.Path:
    """Writes ca.pem, NAME.pem and NAME.key to a new folder."""
    place.mkdir(mode=0o700)
    pem = serialization.Encoding.PEM
    for stem, one in {"ca": authority, name: pair}.items():
        _write(place / f"{stem}.pem", one.certificate.public_bytes(pem), 0o644)
    key = pair.key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(place / f"{name}.key", key, 0o600)
    return place


def _write(path: pathlib.Path, data: bytes, mode: int) -> None:
    # Created with its mode: there is no moment at which others can read a key.
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(number, "wb") as file:
        file.write(data)
