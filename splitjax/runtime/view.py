"""A live view of a cloud on a terminal: ticks, bytes and waits of each slot."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from splitjax.runtime.cloud import Status
from splitjax.runtime.meter import Meter

HEAD = ("slot", "phase", "step", "tick", "loss", "up MB", "down MB", "waits", "refused")


def rows(statuses: Sequence[Status], meter: Meter) -> list[tuple[str, ...]]:
    """What the view says of each slot, below `HEAD`.

    Example:
      >>> rows([Status(0)], Meter())[0][:4]
      ('0', 'free', '0', '0')
    """
    made: list[tuple[str, ...]] = []
    for status in statuses:
        sent = meter.totals(link=f"edge_{status.slot}")
        busy = status.waited_seconds + status.worked_seconds
        share = status.waited_seconds / busy if busy else 0.0
        made.append(
            (
                str(status.slot),
                status.phase,
                str(status.step),
                str(status.tick),
                f"{status.loss:.4f}",
                f"{sent['bytes_up'] / 1e6:.2f}",
                f"{sent['bytes_down'] / 1e6:.2f}",
                f"{share:.0%}",
                f"{status.refused} {status.last}".strip()[:60],
            )
        )
    return made


def table(statuses: Sequence[Status], meter: Meter) -> Any:
    """The view as a `rich` table.

    Example:
      >>> table([Status(0)], Meter()).row_count
      1
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(*HEAD, title="splitjax cloud")
    for row in rows(statuses, meter):
        # Not as markup: a refusal quotes an edge, whose "[/b]" would end the view.
        made.add_row(*map(Text, row))
    return made


@contextlib.contextmanager
def live(cloud: Any, *, on: bool) -> Iterator[None]:
    """Shows the view, renewed twice a second, while the context lasts.

    Args:
      cloud: a `Cloud`.
      on: False shows nothing: no terminal is there.
    """
    if not on:
        yield
        return
    from rich.live import Live

    def now():
        return table(cloud.status(), cloud.meter)

    with Live(get_renderable=now, refresh_per_second=2, screen=False):
        yield
