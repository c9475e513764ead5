"""The flags by which the mains of edge and cloud set up their connection."""

from absl import flags

from splitjax.train.processes import Door


def define(address: str) -> None:
    """Defines the flags.

    Args:
      address: the default.

    Example:
      >>> define.__name__
      'define'
    """
    flags.DEFINE_string("address", address, "HOST:PORT; at a cloud, port 0 is any")
    flags.DEFINE_string(
        "certificates",
        "",
        "this host's folder, as `python -m experiments.certificates` makes it",
    )
    flags.DEFINE_bool("client_certificates", False, "edges show certificates, too")
    flags.DEFINE_bool("plain", False, "plain text instead of TLS, on this machine")
    flags.DEFINE_bool("plain_anywhere", False, "plain text to other hosts as well")
    flags.DEFINE_string("network", "", "send as slowly as this: '10Mbit,20ms'")


def door() -> Door:
    """The door that the flags describe.

    Example:
      >>> door.__name__
      'door'
    """
    given = flags.FLAGS
    return Door(
        address=given.address,
        certificates=given.certificates,
        client_certificates=given.client_certificates,
        plain=given.plain or given.plain_anywhere,
        anywhere=given.plain_anywhere,
        network=given.network,
    )
