"""The flags by which the mains of edge and cloud set up their connection."""

from absl import flags

from splitjax.train.drivers import ToCloud
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


def define_edge(address: str) -> None:
    """Defines the flags of a process that is an edge.

    Args:
      address: the default; "" where a run may have both its halves here.

    Example:
      >>> define_edge.__name__
      'define_edge'
    """
    define(address)
    flags.DEFINE_integer("slot", 0, "of this edge", lower_bound=0)
    flags.DEFINE_float(
        "deadline", 120.0, "seconds of silence after which a connection is dead"
    )
    flags.DEFINE_float("patience", 300.0, "seconds to dial again before giving up")


def to_cloud() -> ToCloud | None:
    """How the flags say that the cloud is reached; None without an address.

    Example:
      >>> to_cloud.__name__
      'to_cloud'
    """
    given = flags.FLAGS
    if not given.address:
        return None
    return ToCloud(door().dial, given.slot, given.deadline, given.patience)
