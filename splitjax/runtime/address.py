"""Addresses, and where plain text may go."""

import ipaddress
import re

from splitjax.runtime.credentials import MAKE, CredentialError

SOCKET_FILES = ("unix:", "unix-abstract:")


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine only.

    Args:
      address: as grpc takes it: "HOST:PORT", "[::1]:PORT", "unix:PATH", "dns:///HOST".

    Returns:
      True for loopback addresses, the name localhost and unix sockets. What is not
      understood is not loopback.

    Example:
      >>> [is_loopback(a) for a in ("localhost:50051", "[::1]:50051", "unix:/tmp/s")]
      [True, True, True]
      >>> [is_loopback(a) for a in ("0.0.0.0:50051", "localhost.example:50051")]
      [False, False]
    """
    if address.startswith(SOCKET_FILES):
        return True
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        address = address.removeprefix(scheme)
    bracketed = re.fullmatch(r"\[(.+)\](:\d*)?", address)
    if bracketed:
        host = bracketed[1]
    else:
        host = address.partition(":")[0] if address.count(":") == 1 else address
    if host.lower() == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def check_plain(address: str, allowed: bool) -> None:
    """Lets plain text go to this machine only, or where it is explicitly allowed.

    Raises:
      CredentialError: for another address that is not `allowed`.

    Example:
      >>> check_plain("127.0.0.1:50051", False)
      >>> check_plain("192.0.2.1:50051", True)
    """
    if not allowed and not is_loopback(address):
        raise CredentialError(
            f"plain text to or from {address}: anyone on the way could read and change "
            f"all of it, tokens too. Use certificates (`{MAKE}` makes some for "
            "development), or allow plain text explicitly"
        )
