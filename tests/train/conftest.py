import dataclasses

import jax
import numpy as np
import pytest

from splitjax.runtime.local import Local
from splitjax.train import drivers, loop
from splitjax.train.finetune import Finetune

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
