"""Who one is: certificates, keys and tokens, checked before grpc sees them."""

import datetime
import os
import pathlib
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

MAKE = "python -m experiments.certificates --out=FOLDER"  # makes new ones
MAX_FILE_BYTES = 2**24


class CredentialError(ValueError):
    """A certificate, key or token that cannot be used, or that is missing."""


def server_credentials(
    folder: str | os.PathLike[str], *, client_certificates: bool
) -> "grpc.ServerCredentials":
    """The cloud's side of TLS, from its folder.

    Args:
      folder: with cloud.pem, cloud.key and, for client certificates, ca.pem: `cloud/`
        of `make_certificates`. cloud.pem may hold a chain, the cloud's own first.
      client_certificates: whether a caller must show one that ca.pem has signed.

    Returns:
      Credentials for `add_secure_port`.

    Raises:
      CredentialError: for a file that is missing, no PEM, out of date, of another key,
        or a key that others can read.

    Example:
      >>> import tempfile
      >>> from splitjax.runtime.certificates import make_certificates
      >>> with tempfile.TemporaryDirectory() as room:
      ...     folder = make_certificates(pathlib.Path(room, "keys"))
      ...     one = server_credentials(folder / "cloud", client_certificates=True)
      >>> type(one).__name__
      'ServerCredentials'
    """
    import grpc

    chain, key = _pair(pathlib.Path(folder), "cloud")
    roots = _roots(pathlib.Path(folder)) if client_certificates else None
    return grpc.ssl_server_credentials(
        [(key, chain)], roots, require_client_auth=client_certificates
    )


def channel_credentials(
    folder: str | os.PathLike[str], *, client_certificates: bool
) -> "grpc.ChannelCredentials":
    """An edge's side of TLS, from its folder.

    Args:
      folder: with ca.pem, which has signed the cloud's certificate, and, for client
        certificates, edge.pem and edge.key: `edge_K/` of `make_certificates`.
      client_certificates: whether to show the edge's own.

    Returns:
      Credentials for `grpc.aio.secure_channel`.

    Raises:
      CredentialError: as `server_credentials`.

    Example: see `server_credentials`.
    """
    import grpc

    roots = _roots(pathlib.Path(folder))
    if not client_certificates:
        return grpc.ssl_channel_credentials(roots)
    chain, key = _pair(pathlib.Path(folder), "edge")
    return grpc.ssl_channel_credentials(roots, key, chain)


def read_file(path: pathlib.Path, *, private: bool = False) -> bytes:
    """The bytes of a credential.

    Args:
      path: of the file.
      private: whether only its owner may have access to it.

    Raises:
      CredentialError: when it cannot be read, is very long, or is open to others.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if private and os.name == "posix" and mode & 0o077:
                raise CredentialError(
                    f"{path}: mode {mode:04o} lets others at it; `chmod 600 {path}`, "
                    "and make a new one if others may have read it"
                )
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        # Often the folder above is given: that of all hosts.
        inner = (path.parent / name for name in ("edge_0", "cloud"))
        near = [str(place) for place in inner if (place / path.name).exists()]
        hint = f"did you mean {near[0]}?" if near else f"`{MAKE}` makes it"
        raise CredentialError(f"{path}: {error.strerror}; {hint}") from error
    if len(data) > MAX_FILE_BYTES:
        raise CredentialError(f"{path}: more than {MAX_FILE_BYTES} bytes")
    return data


def _certificates(path: pathlib.Path) -> tuple[bytes, list[Any]]:
    """A file of certificates, as it is and parsed."""
    from cryptography import x509

    data = read_file(path)
    try:
        return data, x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise CredentialError(f"{path}: no certificate in PEM: {error}") from error


def _roots(folder: pathlib.Path) -> bytes:
    path = folder / "ca.pem"
    data, found = _certificates(path)
    # One of many authorities may be out of date, all of them may not.
    wrong = [_out_of_date(one) for one in found]
    if all(wrong):
        raise CredentialError(f"{path}: {wrong[0]}")
    return data


def _pair(folder: pathlib.Path, name: str) -> tuple[bytes, bytes]:
    """The bytes of NAME.pem and NAME.key, which belong together and are in date."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    chain, found = _certificates(path)
    data = read_file(key_path, private=True)
    try:
        key = load_pem_private_key(data, None)
        same = key.public_key() == found[0].public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # TypeError: the key has a password. The message holds nothing of the key.
        raise CredentialError(f"{key_path}: no plain key in PEM: {error}") from error
    if not same:
        raise CredentialError(f"{key_path}: not the key of the certificate {path}")
    for wrong in filter(None, map(_out_of_date, found)):
        raise CredentialError(f"{path}: {wrong}")
    return chain, data


def _out_of_date(certificate: Any) -> str:
    """What is wrong with its dates; nothing when they hold now."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    if begin <= now <= end:
        return ""
    kind = "expired" if now > end else "not valid yet"
    return (
        f"{kind}: it holds from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, "
        f"and now is {now:%Y-%m-%d %H:%M}; `{MAKE}` makes new ones"
    )
