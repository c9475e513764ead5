"""What is planned: a model, devices, and what is known of them."""

import dataclasses
import math

from splitjax.parallel.mesh import parse
from splitjax.parallel.schedule import KINDS
from splitjax.train.experiment import check, option
from splitjax.train.timing import CLOCKS


@dataclasses.dataclass
class Planning:
    """Which model is planned for how many devices, and what is known of them."""

    model: str = option(
        "smollm2", "'smollm2', a decoder's folder, or the config file of an experiment"
    )
    devices: int = option(4, "how many; on a CPU they are virtual")
    mesh: str = option("pipe=4", "'': the quickest; else as 'data=2,pipe=2'")
    micro: int = option(8, "micro-batches in a step")
    rows: int = option(1, "of a decoder's micro-batch; an experiment has its own")
    tokens: int = option(128, "of a decoder's row")
    kind: str = option("1f1b", f"of the schedule: one of {KINDS}")
    after: tuple[str, ...] = option((), "cut after these blocks; (): planned")
    first_ratio: float = option(
        -1.0, "of the first stage's blocks to recompute; below 0: as the memory asks"
    )
    memory_gb: float = option(0.0, "of a device; 0: no bound")
    gflops: float = option(0.0, "of a device, a second; 0: timed on a matrix product")
    stream_gb: float = option(
        0.0, "of its memory that a device reads or writes a second; 0: timed on a sum"
    )
    link_gb: float = option(0.0, "a second between two devices; 0: at no cost")
    widths: tuple[int, ...] = option((), "what an axis tensor must divide: heads, ...")
    measure: bool = option(True, "run the stages, of the plan and of an even cut")
    rounds: int = option(3, "steps that are timed")
    clock: str = option(
        "wall", "or 'cpu': what other programs take of a core is not counted"
    )

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        check(self.kind, "kind", KINDS)
        check(self.clock, "clock", tuple(CLOCKS))
        for name in ("devices", "micro", "rows", "tokens", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more")
        for name in ("memory_gb", "gflops", "stream_gb", "link_gb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 0 or more")
        if self.first_ratio > 1:
            raise ValueError(f"first_ratio={self.first_ratio}: at most 1")
        if self.mesh:
            self.shape()
            if self.after and len(self.after) != self.shape()["pipe"] - 1:
                raise ValueError(
                    f"after names {len(self.after)} cuts, and mesh={self.mesh!r} has "
                    f"{self.shape()['pipe']} stages"
                )
        elif self.after:
            raise ValueError("cuts of one's own (after) need a mesh: mesh='pipe=2'")

    def shape(self) -> dict[str, int]:
        """The axes of `mesh`, those that are not named of size 1."""
        sizes = parse(self.mesh)
        shape = {name: sizes.pop(name, 1) for name in ("data", "pipe", "tensor")}
        product = math.prod(shape.values())
        if sizes or product != self.devices:
            raise ValueError(
                f"mesh={self.mesh!r} is of {product} devices and devices="
                f"{self.devices}: the axes data, pipe and tensor must have as many"
            )
        return shape
