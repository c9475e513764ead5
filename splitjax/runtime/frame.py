"""A frame: the bytes of one message, checked before anything is made of them."""

import hashlib
import struct
from typing import Any, NamedTuple

import numpy as np

from splitjax.core.message import Lossless, Sized
from splitjax.core.tree import Tree
from splitjax.runtime.columns import pack_columns, unpack_columns
from splitjax.runtime.entropy import grow, shrink
from splitjax.runtime.schema import DTYPES, FrameError, Leaf, Schema, WrongSchema

MAGIC, VERSION = b"spJX", 1
# magic, version, hop, kind, run, slot, tick, schema
HEAD = struct.Struct("<4sHH8sQIQ8s")
COUNT = struct.Struct("<I")  # used rows of a sized leaf, bytes of a coded one
DIGEST_BYTES = 16
OVERHEAD = HEAD.size + DIGEST_BYTES  # and COUNT.size for each count


class NotAFrame(FrameError):
    """The bytes do not begin as a frame does."""


class WrongVersion(FrameError):
    """A frame of another version of this protocol."""


class Truncated(FrameError):
    """Fewer bytes than the frame needs."""


class TooLarge(FrameError):
    """More bytes than the frame needs, or than are allowed."""


class WrongDigest(FrameError):
    """The bytes were changed on their way."""


class NonFinite(FrameError):
    """A NaN or an infinity, where they are refused."""


class Header(NamedTuple):
    """What a frame says about itself.

    Attributes:
      kind: what it is for, up to eight ASCII letters ("up", "weights", ...).
      run: number of the run.
      slot: of the edge.
      tick: number of the micro-batch.
      hop: of the tick.
      schema: hash of the schema; see `Schema.hash`.
    """

    kind: str
    run: int
    slot: int
    tick: int
    hop: int
    schema: bytes


def framing_bytes(schema: Schema) -> int:
    """Bytes of a frame that are not payload: 60, and 4 for each sized or coded leaf.

    Example:
      >>> framing_bytes(Schema(()))
      60
    """
    counts = sum(leaf.sized + bool(leaf.coder) for leaf in schema.leaves)
    return OVERHEAD + COUNT.size * counts


def write(
    schema: Schema, tree: Tree, *, kind: str, run: int, slot: int, tick: int, hop: int
) -> bytes:
    """Writes a message: header, counts, the leaves' bytes, digest.

    Args:
      schema: of the message; see `Schema.of`.
      tree: arrays of NumPy or JAX. Of a `Sized` only the used rows are written; of a
        `Lossless` the entropy-coded bytes, where they are fewer (else the count is 0).
      kind: see `Header`, as the rest.
      run: below 2^64.
      slot: below 2^32.
      tick: below 2^64.
      hop: below 2^16.

    Returns:
      Little-endian bytes. The digest is BLAKE2b over all before it; it finds accidents,
      and names the frame in a journal. Against attackers there is TLS.

    Raises:
      WrongSchema: when the tree is another.
      ValueError: for a header field out of range.

    Example:
      >>> import numpy as np
      >>> x = {"h": np.ones((2, 3), np.float32)}
      >>> schema = Schema.of(x)
      >>> data = write(schema, x, kind="up", run=1, slot=0, tick=5, hop=0)
      >>> len(data)
      84
      >>> header, y = read(schema, data)
      >>> header.tick, y["h"].tolist()
      (5, [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    """
    name = kind.encode()
    if not _is_kind(name):
        raise ValueError(f"kind={kind!r}: one to eight printable ASCII characters")
    try:
        head = HEAD.pack(MAGIC, VERSION, hop, name, run, slot, tick, schema.hash)
    except struct.error as error:
        raise ValueError(f"{run=}, {slot=}, {tick=} or {hop=}: {error}") from error
    counts, body = [head], []
    for leaf, array, used in schema.match(tree):
        part, coded = _part_of(leaf, array, used)
        counts += [COUNT.pack(n) for n in (used, coded) if n is not None]
        body.append(part)
    parts = counts + body
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()])


def peek(data: Any) -> Header:
    """Reads the header alone, to find the schema that a frame needs.

    Raises:
      NotAFrame, WrongVersion, Truncated: as `read`.

    Example: see `read`, which returns the same header.
    """
    if len(data) < OVERHEAD:
        raise Truncated(f"{len(data)} bytes; the shortest frame has {OVERHEAD}")
    magic, version, hop, kind, run, slot, tick, schema = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise NotAFrame(f"a frame begins with {MAGIC!r}, these bytes with {magic!r}")
    if version != VERSION:
        raise WrongVersion(f"version {version}; this end speaks version {VERSION}")
    name = kind.rstrip(b"\0")
    if not _is_kind(name):
        raise NotAFrame(f"kind {kind!r} is not one to eight printable characters")
    return Header(name.decode(), run, slot, tick, hop, schema)


def read(
    schema: Schema,
    data: Any,
    *,
    max_bytes: int | None = None,
    check_finite: bool = False,
) -> tuple[Header, Tree]:
    """Reads what `write` wrote. Every size is checked before memory is allocated.

    What it allocates is at most what the schema allows, and a few megabytes to read
    columns: what coded leaves claim to grow to is compared with that first.

    Args:
      schema: of the message that is expected.
      data: bytes, or a buffer of them. The arrays are views of it, except the coded
        ones and the sized ones, which are filled up with zeros.
      max_bytes: longest frame that is looked at; by default what the schema allows.
      check_finite: whether a NaN or an infinity is refused.

    Returns:
      The header and a tree of NumPy arrays, in the schema's structure.

    Raises:
      FrameError: `NotAFrame`, `WrongVersion`, `WrongSchema`, `Truncated`, `TooLarge`,
        `WrongDigest`, `WrongCoding` or `NonFinite`.

    Example: see `write`.
    """
    data = memoryview(data).cast("B")
    limit = framing_bytes(schema) + schema.max_bytes
    limit = limit if max_bytes is None else min(limit, max_bytes)
    header = peek(data)
    if header.schema != schema.hash:
        raise WrongSchema(
            f"a frame of schema {header.schema.hex()}, expected {schema.hash.hex()}: "
            "do both ends run one config, and is this the right hop?"
        )
    if len(data) > limit:
        raise TooLarge(f"a frame of {len(data)} bytes; at most {limit} are read")
    if len(data) < framing_bytes(schema):
        raise Truncated(f"{len(data)} bytes; at least {framing_bytes(schema)} are due")
    plan, place = [], HEAD.size
    for leaf in schema.leaves:
        used = None
        if leaf.sized:
            (used,) = COUNT.unpack_from(data, place)
            place += COUNT.size
            if used > leaf.shape[0]:
                raise TooLarge(f"{leaf.path}: {used} rows, at most {leaf.shape[0]}")
        coded, size = 0, leaf.row_bytes * (1 if used is None else used)
        if leaf.coder:
            (coded,) = COUNT.unpack_from(data, place)
            place += COUNT.size
            if coded and coded >= size:
                raise TooLarge(f"{leaf.path}: {size} bytes are coded in {coded}")
        plan.append((leaf, used, size, coded))
    total = framing_bytes(schema) + sum(coded or size for _, _, size, coded in plan)
    if len(data) != total:
        error = Truncated if len(data) < total else TooLarge
        raise error(f"a frame of {len(data)} bytes; by its sizes it has {total}")
    body = data[:-DIGEST_BYTES]
    digest = hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest()
    if digest != data[-DIGEST_BYTES:]:
        raise WrongDigest("the digest does not fit: bytes were changed on their way")
    nodes: list[Any] = []
    for leaf, used, size, coded in plan:
        part = data[place : place + (coded or size)]
        place += len(part)
        if coded:
            part = _grown(part, leaf, used, size)
        node = _array_of(part, leaf, used, check_finite)
        nodes.append(Lossless(node, leaf.coder) if leaf.coder else node)
    return header, schema.build(nodes)


def payload_bytes(tree: Tree) -> int:
    """Bytes of a message as `write` sends them, without framing.

    Example:
      >>> import numpy as np
      >>> payload_bytes(Sized(np.zeros((8, 2), np.float32), np.int32(3)))
      24
    """
    return sum(len(_part_of(*leaf)[0]) for leaf in Schema.of(tree).match(tree))


def _is_kind(name: bytes) -> bool:
    return 0 < len(name) <= 8 and name.isascii() and name.decode().isprintable()


def _part_of(
    leaf: Leaf, array: Any, used: int | None
) -> tuple[memoryview | bytes, int | None]:
    """A leaf's bytes as they cross, and its count of coded bytes; None: it has none."""
    array = np.asarray(array)
    array = array if used is None else array[:used]
    # A view as bytes first: ml_dtypes' own dtypes have no buffer protocol.
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if not leaf.coder:
        return raw.data, None
    if isinstance(leaf.coder, str):
        coded = pack_columns(array)
    else:
        coded = shrink(raw, item_bytes=array.dtype.itemsize, level=leaf.coder)
    return (raw.data, 0) if coded is None else (coded, len(coded))


def _grown(part: memoryview, leaf: Leaf, used: int | None, size: int) -> Any:
    """The bytes of a leaf from what they were coded in."""
    dtype = DTYPES[leaf.dtype]
    if isinstance(leaf.coder, str):
        shape = leaf.shape if used is None else (used, *leaf.shape[1:])
        numbers = unpack_columns(part, shape, dtype, what=leaf.path)
        return numbers.reshape(-1).view(np.uint8).data
    return grow(part, size, item_bytes=dtype.itemsize, what=leaf.path)


def _array_of(
    part: memoryview | bytes, leaf: Leaf, used: int | None, check_finite: bool
) -> np.ndarray | Sized:
    dtype = DTYPES[leaf.dtype]
    shape = leaf.shape if used is None else (used, *leaf.shape[1:])
    if dtype == np.bool_ and np.any(np.frombuffer(part, np.uint8) > 1):
        raise WrongSchema(f"{leaf.path}: bools are bytes of 0 or 1")
    array = np.frombuffer(part, np.uint8).view(dtype).reshape(shape)
    if check_finite and dtype.kind not in "biu":
        with np.errstate(invalid="ignore"):  # a signaling NaN would warn
            bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise NonFinite(f"{leaf.path}: {bad} of {array.size} values are not finite")
    if used is None:
        return array
    buffer = np.zeros(leaf.shape, dtype)
    buffer[:used] = array
    return Sized(buffer, np.int32(used))
