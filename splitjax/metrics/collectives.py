"""What the devices of a compiled program send each other."""

import math
import re
from typing import Any, NamedTuple

import numpy as np

# The operation is the word before the first parenthesis that follows the shape.
KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
LINE = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.-]+ = (?P<shape>.*?) (?P<op>{'|'.join(KINDS)})"
    r"(?P<start>-start)?\("
)
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
# Devices 0, 1, ... in a shape, and its axes in another order.
IOTA = r"\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?"
MESH = (
    r"mesh\[(?P<axes>[^\]]*)\]"
    rf"(?:, device_ids=\({IOTA}\))? "
    r"\{(?P<over>'\w+'(?:,'\w+')*)\}"
)
BITS = {"pred": 8, "token": 0, "opaque": 0}


class Collective(NamedTuple):
    """One operation of a program in which devices send each other arrays.

    Attributes:
      op: "all-reduce", "all-gather", and so on.
      shape: dtype and shape of each array that it gives a device, as "f32[4,16]": one,
        or more where the compiler combined operations, or all-to-all cut an array.
      bytes: of these arrays together, on one device.
      groups: the devices that take part together, by their number in the mesh; pairs
        (from, to) for a collective-permute.
    """

    op: str
    shape: tuple[str, ...]
    bytes: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def sent_bytes(self) -> float:
        """What a device sends in a ring, the way in which least is sent.

        Of W devices and n bytes of result: 2 n (W - 1) / W for an all-reduce, n (W - 1)
        / W for an all-gather, an all-to-all or a broadcast, n (W - 1) for a
        reduce-scatter, n for a collective-permute. So an all-reduce sends as much as a
        reduce-scatter and an all-gather of the same array.
        """
        if self.op == "collective-permute":
            return float(self.bytes)
        width = max((len(group) for group in self.groups), default=1)
        share = {"all-reduce": 2 / width, "reduce-scatter": 1.0}
        return self.bytes * (width - 1) * share.get(self.op, 1 / width)


def count_collectives(compiled: Any) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    The only place where such text is read. An operation in the body of a loop
    (`lax.scan`) is listed once, however often it runs: multiply it by the number of
    turns. One that was parted in "-start" and "-done" is listed once. Sends within a
    kernel, and between hosts outside of the program, are not seen.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` gives, or its text.

    Raises:
      ValueError: for devices written in a form that is not known here.

    Example:
      >>> text = '''HloModule jit_f, num_partitions=4
      ...   %r = (f32[8]{0}, bf16[2,3]) all-reduce(%a, %b), replica_groups=[2,2]<=[4]
      ... '''
      >>> [found] = count_collectives(text)
      >>> found.op, found.shape, found.bytes, found.groups
      ('all-reduce', ('f32[8]', 'bf16[2,3]'), 44, ((0, 1), (2, 3)))
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    header = re.search(r"num_partitions=(\d+)", text)
    copies = re.search(r"replica_count=(\d+)", text)
    devices = math.prod(int(found[1]) for found in (header, copies) if found)
    lines = ((line, LINE.match(line)) for line in text.splitlines())
    return [_read(line, found, devices) for line, found in lines if found]


def _read(line: str, found: re.Match, devices: int) -> Collective:
    op, arrays = found["op"], ARRAY.findall(found["shape"])
    if found["start"] and op != "all-reduce":
        # The operands, as many results, and for a permute two counters.
        counters = op == "collective-permute" and arrays[-2:] == [("u32", "")] * 2
        if counters and len(arrays) > 2:  # two alone are an operand and its result
            arrays = arrays[:-2]
        arrays = arrays[len(arrays) // 2 :]
    shapes = tuple(f"{dtype}[{shape}]" for dtype, shape in arrays)
    size = sum(_bytes(dtype, shape) for dtype, shape in arrays)
    return Collective(op, shapes, size, _groups(line, devices))


def _bytes(dtype: str, shape: str) -> int:
    # f32, bf16, s4, f8e4m3fn: the first number is that of the bits.
    bits = BITS.get(dtype)
    if bits is None:
        number = re.search(r"\d+", dtype)
        if number is None:
            raise ValueError(f"a dtype {dtype!r}, whose size is not known here")
        bits = int(number[0])
    sizes = [int(size.strip("<=")) for size in shape.split(",") if size]
    return -(-math.prod(sizes) * bits // 8)


def _groups(line: str, devices: int) -> tuple[tuple[int, ...], ...]:
    found = re.search(r"(?:replica_groups|source_target_pairs)=(\S.*)$", line)
    rest = found[1] if found else ""
    if iota := re.match(rf"\[([\d,]+)\]<={IOTA}", rest):
        return _rows(_iota(*iota.groups()[1:]).reshape(_numbers(iota[1])))
    if named := re.match(MESH, rest):
        axes = re.findall(r"'(\w+)'=(\d+)", named["axes"])
        names, sizes = [name for name, _ in axes], [int(size) for _, size in axes]
        over = [names.index(name) for name in re.findall(r"'(\w+)'", named["over"])]
        dims = named["dims"] or str(math.prod(sizes))
        numbers = _iota(dims, named["order"]).reshape(sizes)
        rows = np.moveaxis(numbers, over, range(-len(over), 0))
        return _rows(rows.reshape(-1, math.prod(sizes[axis] for axis in over)))
    if re.match(r"\{\}", rest):
        return (tuple(range(devices)),)
    if listed := re.match(r"\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}", rest):
        inner = re.findall(r"\{([\d,]*)\}", listed[1])
        return tuple(tuple(int(n) for n in row.split(",") if n) for row in inner)
    raise ValueError(f"the devices of a collective, in an unknown form: {line}")


def _iota(dims: str, order: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _rows(numbers: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in numbers.tolist())
