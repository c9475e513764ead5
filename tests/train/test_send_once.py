"""What a frozen edge sent in the first epoch is not sent again."""

import jax
import numpy as np
import pytest

from splitjax.runtime.local import Local
from splitjax.train import runs

ONCE = dict(
    epochs=3, frozen_edge=True, send_once=True, forward_bits=8, micro=2, eval_every=1
)


@pytest.fixture(scope="module")
def once(options, watch, tmp_path_factory):
    return watch(options(**ONCE), tmp_path_factory.mktemp("once"))


def ups(seen):
    return [1 for kind, way, _ in seen.sent if (kind, way) == ("train", "up")]


def test_it_ends_in_the_bits_of_the_run_that_sends_again(
    once, options, watch, tmp_path, monkeypatch
):
    monkeypatch.setattr(Local, "keep", lambda self, store: None)
    again = watch(options(**ONCE), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, once.end, again.end)
    assert again.summary["bytes_up"] == 3 * once.summary["bytes_up"] > 0
    assert once.summary["ratio"] == pytest.approx(3 * again.summary["ratio"], rel=1e-2)
    assert len(ups(again)) == 3 * len(ups(once))


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(2, id="first epoch"),
        pytest.param(5, id="second epoch", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_sends_and_counts_the_same(
    at, once, options, watch, tmp_path, power_cut
):
    every = dict(checkpoint_every=1)
    with power_cut(at):
        watch(options(**ONCE, **every), tmp_path)
    resumed = watch(options(**ONCE, **every), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, once.end, resumed.end)
    assert resumed.summary["bytes"] == once.summary["bytes"]


def test_an_edge_that_learns_must_send_again(options):
    with pytest.raises(ValueError, match="needs frozen_edge=True"):
        options(**{**ONCE, "frozen_edge": False}).validate()


def test_a_driver_keeps_only_what_cannot_change(options, tmp_path):
    run = runs.open_run(options(), 0, tmp_path / "one")
    with pytest.raises(ValueError, match="first segment is frozen"):
        run.driver.keep(None)
