"""A meter of what was sent: bytes and frames by link, direction and kind."""

import threading

from splitjax.runtime import control, frame

DIRECTIONS = ("up", "down")
KINDS = ("train", "predict", "weights")  # of frames


class Meter:
    """Counts the frames handed to and taken from a transport.

    It remembers what it is told, and any thread may tell it.

    Example:
      >>> meter = Meter()
      >>> meter.add("edge_0", "up", "act", 100)
      >>> meter.add("edge_0", "down", "grad", 60)
      >>> meter.totals()
      {'bytes_up': 100, 'frames_up': 1, 'bytes_down': 60, 'frames_down': 1}
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], list[int]] = {}

    def add(
        self, link: str, direction: str, kind: str, size_bytes: int, *, frames: int = 1
    ) -> None:
        """Counts one frame, or several.

        Args:
          link: whose link, e.g. the edge's name.
          direction: "up" (to the cloud) or "down".
          kind: as in the frame's header.
          size_bytes: of all the frames together, with framing.
          frames: how many.

        Raises:
          ValueError: for another direction or a negative count.
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction!r}: expected 'up' or 'down'")
        if size_bytes < 0 or frames < 0:
            raise ValueError(f"{size_bytes=}, {frames=}: counts only grow")
        with self._lock:
            entry = self._counts.setdefault((link, direction, kind), [0, 0])
            entry[0] += size_bytes
            entry[1] += frames

    def rows(self) -> list[dict]:
        """What was counted: `{"link", "direction", "kind", "bytes", "frames"}`.

        Sorted, and made of JSON's types, for `summary.json`.
        """
        with self._lock:
            counts = sorted((key, tuple(entry)) for key, entry in self._counts.items())
        return [
            {
                "link": link,
                "direction": direction,
                "kind": kind,
                "bytes": size,
                "frames": frames,
            }
            for (link, direction, kind), (size, frames) in counts
        ]

    def totals(
        self, *, link: str | None = None, kind: str | None = None
    ) -> dict[str, int]:
        """Sums by direction: `{"bytes_up", "frames_up", "bytes_down", "frames_down"}`.

        Args:
          link: of this link only.
          kind: of this kind only.
        """
        out = {f"{what}_{d}": 0 for d in DIRECTIONS for what in ("bytes", "frames")}
        for row in self.rows():
            if link in (None, row["link"]) and kind in (None, row["kind"]):
                out[f"bytes_{row['direction']}"] += row["bytes"]
                out[f"frames_{row['direction']}"] += row["frames"]
        return out

    def merge(self, rows: "Meter | list[dict]") -> "Meter":
        """Adds another meter, or its `rows`, to this one, and returns this one.

        Example:
          >>> one, two = Meter(), Meter()
          >>> one.add("edge_0", "up", "act", 1)
          >>> two.merge(one).merge(one.rows()).totals()["bytes_up"]
          2
        """
        for row in rows.rows() if isinstance(rows, Meter) else rows:
            where = row["link"], row["direction"], row["kind"]
            self.add(*where, row["bytes"], frames=row["frames"])
        return self


def kind_of(data: bytes) -> str:
    """What the meter calls a message: "control", the kind of a frame, or "other".

    Example:
      >>> kind_of(control.write("bye"))
      'control'
    """
    if control.is_control(data):
        return "control"
    kind = frame.peek(data).kind
    return kind if kind in KINDS else "other"  # a name of each would cost memory
