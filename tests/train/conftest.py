import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from splitjax.runtime.local import Local
from splitjax.storage import log
from splitjax.train import drivers, loop
from splitjax.train.finetune import Finetune
from splitjax.train.next_token import NextToken

OPTIONS = dict(layer=1, rank=4, batch_size=8, max_length=8, epochs=1)


@dataclasses.dataclass
class Watched:
    """A run, and what went by.

    Attributes:
      summary: as `train` gives it.
      folder: the run's.
      start: all arrays before the first step.
      end: all arrays after the last one.
      sent: (kind, direction, message) of every frame.
    """

    summary: dict
    folder: object
    start: object
    end: object
    sent: list


@pytest.fixture(scope="session")
def options(tiny_model, tiny_task):
    """A function to a tiny experiment; public text is the task's own."""
    given = dict(task=str(tiny_task), model=str(tiny_model), fit_text=(str(tiny_task),))

    def make(**more) -> Finetune:
        return Finetune(**{**OPTIONS, **given, **more})

    return make


class PowerCut(Exception):
    """Ends a run as no handler expects."""


@pytest.fixture
def power_cut(monkeypatch):
    """A function to a context whose run ends as it logs a value of a step."""

    @contextlib.contextmanager
    def cut(step: int, value: str = "loss"):
        write = log.Log.write

        def failing(self, at, **values):
            if at == step and value in values:
                raise PowerCut
            write(self, at, **values)

        with monkeypatch.context() as patch, pytest.raises(PowerCut):
            patch.setattr(loop.Log, "write", failing)
            yield

    return cut


def arrays(run) -> object:
    """A copy of a state: a step uses up the arrays that it is given."""
    return jax.tree.map(np.array, run)


def watch(experiment: Finetune, folder) -> Watched:
    """Runs an experiment with its driver spied upon."""
    seen = Watched({}, folder, None, None, [])

    class Spied(Local):
        def start(self, *args, **kwargs):
            run = super().start(*args, **kwargs)
            seen.start = arrays(run)
            return run

        def step(self, *args, **kwargs):
            run, metrics = super().step(*args, **kwargs)
            seen.end = arrays(run)
            return run, metrics

        def _ship(self, tree, kind, direction, hop, at, **more):
            if tree is not None:
                seen.sent.append((kind, direction, jax.device_get(tree)))
            return super()._ship(tree, kind, direction, hop, at, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drivers, "Local", Spied)
        seen.summary = loop.train(experiment, 0, folder, progress=False)
    return seen


@pytest.fixture(scope="session", name="watch")
def _watch():
    """The function `watch(experiment, folder)`."""
    return watch


@pytest.fixture(scope="session")
def tiny_language(tiny_decoder):
    """The folder of a random decoder of the Llama form, and a text."""
    folder = tiny_decoder()
    return folder, folder / "text.txt"


@pytest.fixture(scope="session")
def language(tiny_decoder):
    """A function to a run of such a decoder of a form: three steps of 8 windows."""
    chance = dict(dropout=0.2, attention_dropout=0.2)
    folders = {
        "llama": tiny_decoder(**chance),
        "gpt2": tiny_decoder(family="gpt2", kv_heads=4, **chance),
    }

    def make(family="llama", **more) -> NextToken:
        folder = str(folders[family])
        given = dict(task=f"{folder}/text.txt", model=folder, eval_limit=0)
        sizes = dict(window=8, batch_size=8, limit=24, epochs=1)
        return NextToken(**{**given, **sizes, **more})

    return make
