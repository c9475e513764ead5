"""Control messages: what edge and cloud say to each other besides tensors."""

from importlib import metadata
from typing import Any, NamedTuple

import msgpack

from splitjax.core.tree import nearest
from splitjax.runtime.schema import FrameError

MAGIC = b"spJC"
PROTOCOL = 2
MAX_BYTES = 2**20
MAX_DEPTH = 16
PLAIN = (type(None), bool, int, float, str, bytes, list, dict)

# By kind, the fields and their types; nothing else is read.
FIELDS: dict[str, dict[str, type]] = {
    # Edge to cloud.
    "hello": {
        "protocol": int,
        "version": str,
        "lease": bytes,
        "fresh": bool,  # it holds no state, and needs weights
        "resumed": bool,  # a new process, at the tick of its checkpoint
        "tick": int,
        "config": dict,
        "facts": dict,
        "batch": bytes,
    },
    "shape": {"batch": bytes},
    "name": {"tick": int, "name": str},
    "kept": {"tick": int, "name": str},
    "durable": {"step": int, "tick": int},
    "bye": {},
    # Cloud to edge.
    "welcome": {"run": int, "tick": int, "version": str},
    "ack": {"tick": int, "metrics": dict, "lost": list},  # examples to send whole
    "saved": {"tick": int},
    "refused": {"code": str, "text": str},
}


class BadControl(FrameError):
    """A control message that is none of `FIELDS`."""


class Control(NamedTuple):
    """A control message.

    Attributes:
      kind: a key of `FIELDS`.
      fields: by name.
    """

    kind: str
    fields: dict[str, Any]


class Refused(RuntimeError):
    """The cloud will not go on with this edge; `code` says why in a word.

    Attributes:
      code: "version", "config", "facts", "slot", "run", "stale", "busy", "digest",
        "order", "ids", "labels", "replay", "full", "storage", "closing", "failed", or
        the name of a `FrameError`.
    """

    def __init__(self, code: str, text: str):
        self.code, self.text = _shown(code, 40), _shown(text, 2000)
        super().__init__(f"{self.text} [{self.code}]")


def software() -> str:
    """The version of splitjax, which edge and cloud must share.

    Example:
      >>> isinstance(software(), str)
      True
    """
    try:
        return metadata.version("splitjax")
    except metadata.PackageNotFoundError:
        return "a checkout"


def is_control(data: bytes) -> bool:
    """Whether a message is a control message; if not, it is a frame.

    Example:
      >>> is_control(write("bye")), is_control(b"spJX...")
      (True, False)
    """
    return bytes(data[: len(MAGIC)]) == MAGIC


def write(kind: str, **fields: Any) -> bytes:
    """Writes a control message: its magic, then kind and fields as MessagePack.

    Raises:
      BadControl: for a kind or fields that there are not.

    Example:
      >>> read(write("saved", tick=3))
      Control(kind='saved', fields={'tick': 3})
    """
    _check(kind, fields)
    packed: Any = msgpack.packb([kind, fields])
    data = MAGIC + packed
    if len(data) > MAX_BYTES:
        raise BadControl(f"{kind!r} of {len(data)} bytes; at most {MAX_BYTES} are sent")
    return data


def read(data: bytes) -> Control:
    """Reads what `write` wrote, from anyone.

    Raises:
      BadControl: for anything else.
    """
    if not is_control(data):
        raise BadControl(f"a control message begins with {MAGIC!r}")
    if len(data) > MAX_BYTES:
        raise BadControl(f"{len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        made = msgpack.unpackb(
            bytes(data[len(MAGIC) :]),
            strict_map_key=True,
            ext_hook=_no_extension,
            max_str_len=MAX_BYTES,
            max_bin_len=MAX_BYTES,
            max_array_len=2**12,
            max_map_len=2**12,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadControl(f"no MessagePack within the limits: {error!r}") from error
    _check_nesting(made)
    if not (isinstance(made, list) and len(made) == 2 and isinstance(made[0], str)):
        raise BadControl(f"expected [kind, fields]; got {str(made)[:100]}")
    kind, fields = made
    _check(kind, fields)
    return Control(kind, fields)


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}: none is read")


def _check_nesting(made: Any) -> None:
    """Level by level: what follows looks at the whole, and Python's stack is short."""
    level = [made]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for node in level:
            if type(node) not in PLAIN:  # a timestamp is an extension, too
                raise BadControl(f"a {type(node).__name__}: none is read")
            if isinstance(node, (list, dict)):
                inner += node.values() if isinstance(node, dict) else node
        level = inner
        if not level:
            return
    raise BadControl(f"nested more than {MAX_DEPTH} deep")


def _shown(text: str, size: int) -> str:
    """A text of anyone's, for a terminal and for the wire."""
    return "".join(c if c.isprintable() else " " for c in text[:size])


def _check(kind: str, fields: Any) -> None:
    if kind not in FIELDS:
        raise BadControl(f"kind {kind[:40]!r}: {nearest(kind[:40], tuple(FIELDS))}")
    want = FIELDS[kind]
    if not isinstance(fields, dict) or set(fields) != set(want):
        given = sorted(map(str, fields))[:20] if isinstance(fields, dict) else fields
        raise BadControl(f"{kind!r} has the fields {sorted(want)}; got {given!s:.200}")
    for name, value in fields.items():
        if type(value) is not want[name]:
            raise BadControl(
                f"{kind}.{name} is a {want[name].__name__}; got {value!r:.100}"
            )
        if isinstance(value, int) and not 0 <= value < 2**63:
            raise BadControl(f"{kind}.{name}={value}: from 0 to 2^63 - 1")
    for name, value in fields.get("metrics", {}).items():
        if type(name) is not str or type(value) is not float:
            raise BadControl(f"metrics are floats by name; got {name!r:.40}")
    for number in fields.get("lost", ()):
        if type(number) is not int or not 0 <= number < 2**31:
            raise BadControl(f"lost examples are ids; got {number!r:.40}")
