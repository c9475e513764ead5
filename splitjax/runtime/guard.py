"""Which slot a caller may touch: by bearer token, by certificate, or by both."""

import hashlib
import hmac
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from splitjax.runtime.credentials import MAKE, CredentialError, read_file

MAX_TOKEN_BYTES = 512
MAX_SLOT = 2**32 - 1  # what the header of a frame can say
EDGE = re.compile(r"edge_(0|[1-9][0-9]{0,9})")


class Unauthenticated(ValueError):
    """A caller who did not show who it is. The message never holds what was shown."""


class Guard:
    """Tells the slot of a caller, from what grpc knows of the call.

    The cloud holds digests of tokens, not the tokens. All digests are compared, each
    in constant time. When tokens and certificates are both asked for, both must name
    one slot: neither a stolen token nor a stolen key is enough.

    Args:
      tokens: slots by the SHA-256 of their tokens, in hex (`read_tokens`); None when
        no token is asked for.
      client_certificates: whether the common name of a verified client certificate,
        `edge_K`, is asked for. The server must then verify them (`server_credentials`).

    Raises:
      CredentialError: when nothing is asked for, or the tokens are something else.

    Example:
      >>> digest = hashlib.sha256(b"not-a-secret").hexdigest()
      >>> guard = Guard({digest: 3}, client_certificates=False)
      >>> guard.slot([("authorization", "Bearer not-a-secret")], {})
      3
    """

    def __init__(self, tokens: Mapping[str, int] | None, client_certificates: bool):
        if tokens is None and not client_certificates:
            raise CredentialError("a guard needs tokens, client certificates, or both")
        if tokens is not None and not _is_tokens(dict(tokens)):
            raise CredentialError("tokens: slots by SHA-256 in hex; see `read_tokens`")
        self._tokens = None if tokens is None else dict(tokens)
        self._client_certificates = client_certificates

    def slot(
        self,
        metadata: Iterable[tuple[str, str | bytes]] | None,
        auth_context: Mapping[str, Iterable[bytes]],
    ) -> int:
        """The only slot that the caller may touch.

        Args:
          metadata: pairs, `context.invocation_metadata()`.
          auth_context: `context.auth_context()`.

        Returns:
          The slot.

        Raises:
          Unauthenticated: when nothing valid is shown, or two unlike things are.
        """
        slots = set()
        if self._tokens is not None:
            slots.add(_by_token(metadata or (), self._tokens))
        if self._client_certificates:
            slots.add(_by_certificate(auth_context))
        if len(slots) != 1:
            raise Unauthenticated("the token and the certificate are of unlike slots")
        return slots.pop()


def read_token(folder: str | os.PathLike[str]) -> str:
    """The bearer token of an edge, from the file `token` of its folder.

    Raises:
      CredentialError: when it is missing, is no token, or others can read it.

    Example: see `bearer`.
    """
    path = pathlib.Path(folder, "token")
    token = read_file(path, private=True).strip()
    if not re.fullmatch(rb"[\x21-\x7e]{16,%d}" % MAX_TOKEN_BYTES, token):
        raise CredentialError(
            f"{path}: a token is one line of 16 to {MAX_TOKEN_BYTES} printable "
            f"characters; make one with `{MAKE}`"
        )
    return token.decode()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """A token as the metadata of a call.

    Example:
      >>> bearer("not-a-secret")
      (('authorization', 'Bearer not-a-secret'),)
    """
    return (("authorization", f"Bearer {token}"),)


def read_tokens(folder: str | os.PathLike[str]) -> dict[str, int]:
    """The slots by the SHA-256 of their tokens, from `tokens.json` of the cloud.

    Returns:
      What `Guard` takes. A slot may have several tokens, to change one without a gap.

    Raises:
      CredentialError: when the file is missing or holds anything else.
    """
    path = pathlib.Path(folder, "tokens.json")
    try:
        found = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CredentialError):
            raise
        raise CredentialError(f"{path}: not JSON: {error}") from error
    if not _is_tokens(found):
        raise CredentialError(f'{path}: expected {{"SHA-256 in hex": slot, ...}}')
    return found


def _is_tokens(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and bool(found)
        and all(re.fullmatch("[0-9a-f]{64}", str(name)) for name in found)
        and all(type(slot) is int and 0 <= slot <= MAX_SLOT for slot in found.values())
    )


def _by_token(metadata: Iterable[tuple[str, Any]], tokens: Mapping[str, int]) -> int:
    shown = [value for name, value in metadata if name.lower() == "authorization"]
    if len(shown) != 1:
        raise Unauthenticated(f"{len(shown)} authorization entries; one is asked for")
    value = shown[0] if isinstance(shown[0], str) else ""
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the authorization entry is not `Bearer TOKEN`")
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise Unauthenticated(f"a token has at most {MAX_TOKEN_BYTES} ASCII characters")
    digest = hashlib.sha256(token.encode()).hexdigest()
    found = None
    for known, slot in tokens.items():  # to the end: time must not tell which one
        if hmac.compare_digest(known, digest):
            found = slot
    if found is None:
        raise Unauthenticated("the token is not known here")
    return found


def _by_certificate(auth_context: Mapping[str, Iterable[bytes]]) -> int:
    names = list(auth_context.get("x509_common_name", ()))
    if len(names) != 1:
        raise Unauthenticated(
            "no client certificate with one common name: is plain text spoken here?"
            if not names
            else "a client certificate with several common names"
        )
    match = EDGE.fullmatch(names[0].decode("ascii", "replace"))
    if match is None or int(match[1]) > MAX_SLOT:
        raise Unauthenticated("the client certificate is not of an edge (`edge_K`)")
    return int(match[1])
