import io

import pytest
from rich.console import Console

from splitjax.runtime import view
from splitjax.runtime.cloud import Status
from splitjax.runtime.meter import Meter


class Watched:
    def __init__(self):
        self.meter = Meter()
        self.meter.add("edge_1", "up", "train", 2_500_000)

    def status(self):
        busy = dict(waited_seconds=1.0, worked_seconds=3.0)
        return [
            Status(0),
            Status(1, "working", 7, 3, 0.5, refused=2, last="digest: no", **busy),
        ]


def test_a_row_tells_ticks_bytes_and_waits():
    cloud = Watched()
    first, second = view.rows(cloud.status(), cloud.meter)
    assert first[:4] == ("0", "free", "0", "0")
    assert second == (
        *("1", "working", "3", "7", "0.5000", "2.50", "0.00", "25%"),
        "2 digest: no",
    )


def test_the_table_is_drawn():
    cloud, console = Watched(), Console(width=120, record=True, file=io.StringIO())
    console.print(view.table(cloud.status(), cloud.meter))
    text = console.export_text()
    assert "splitjax cloud" in text and "2 digest: no" in text and "25%" in text


@pytest.mark.parametrize("text", ["[/b]", "[red]blue", "\\[x]", "[link=x]y"])
def test_what_an_edge_said_is_shown_as_it_is(text):
    """As a refusal quotes it; as markup it would raise, and end the view."""
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view.table([Status(0, refused=1, last=f"config: {text}")], Meter()))
    assert f"1 config: {text}" in console.export_text()


def test_nothing_is_shown_where_nobody_looks(capsys):
    with view.live(Watched(), on=False):
        pass
    assert capsys.readouterr().out == ""
