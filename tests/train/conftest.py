import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.stage import join
from splitjax.data.synthetic import write_tokenizer
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.export import save
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


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory):
    """The folder of a random decoder that knows the words of `toy`, and a text."""
    folder = write_tokenizer(tmp_path_factory.mktemp("language") / "model")
    sizes = dict(width=16, heads=4, kv_heads=2, layers=1, ffn=24, positions=16)
    config = DecoderConfig(vocab=17, init_std=0.3, **sizes)
    kinds = {"ids": jnp.int32, "mask": jnp.bool_}
    spec = {name: jax.ShapeDtypeStruct((1, 2), kind) for name, kind in kinds.items()}
    params, _ = jax.jit(lambda key: join(decoder(config)).init(key, spec))(
        jax.random.key(1)
    )
    save(folder, config, params)
    words = np.random.default_rng(0).choice(["red", "dog", "cat", "sky"], 400)
    (folder / "text.txt").write_text(" ".join(words))
    return folder, folder / "text.txt"
