"""What every experiment shares whose model is cut at named places."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from splitjax.algorithms.split import split_learning
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.message import tree_bytes
from splitjax.core.split import Split
from splitjax.core.stage import Stage
from splitjax.core.still import still
from splitjax.core.tree import Tree, spec_of
from splitjax.data import has_folder
from splitjax.metrics.flops import edge_share
from splitjax.models import pretrained
from splitjax.models.config_fields import FUSED
from splitjax.privacy import guarded, leak_loss, scrutinizer
from splitjax.train.codec_text import codec_of
from splitjax.train.experiment import Experiment, Parts, check, option
from splitjax.train.scaled import Scaled
from splitjax.train.second_order import SecondOrder
from splitjax.train.task import SCORES, Task

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def check_fused(fused: str, mesh: str) -> None:
    """Raises a ValueError for a `fused` that is none, or that a mesh cannot divide.

    Example:
      >>> check_fused("xla", "data=2")
    """
    check(fused, "fused", FUSED)
    if fused == "auto" and mesh:
        raise ValueError(
            f"fused='auto' beside mesh={mesh!r}: off the CPU it takes Pallas programs, "
            "which a mesh cannot divide; take fused='xla'"
        )


@dataclasses.dataclass
class CutExperiment(SecondOrder, Scaled):
    """Options of the cut and of what crosses it; methods that make parts of them."""

    data_dir: str = option("", "a folder of the task's files, where not the default")
    metric: str = option("", f"one of {tuple(SCORES)}; by default the task's own")
    limit: int = option(0, "training examples at most; 0: all of them")
    dtype: str = option("float32", f"what is computed in: one of {tuple(DTYPES)}")
    after: tuple[str, ...] = option((), "where to cut: one place or several")
    label_side: str = option("cloud", "where the labels are: 'cloud' or 'edge'")
    frozen_edge: bool = option(False, "the edge does not learn; no gradient is sent")
    send_once: bool = option(
        False, "with a frozen edge: the cloud keeps what the first epoch sent it"
    )
    leak: float = option(
        0.0, "weight of the edge's own loss: how much its messages depend on its data"
    )
    edge_dropout: bool = option(
        True, "dropout at the edge; off for codecs that remember examples (delta)"
    )
    map_rows: bool = option(
        False, "what codecs remember of examples stays on disk, in a memory map"
    )
    scrutinize: bool = option(
        False, "the edge watches whether gradients are those of a classifier (FSHA)"
    )
    forward: str = option("", "codecs of activations, as 'c3(4) + quantize(8)'")
    backward: str = option("", "codecs of gradients, likewise")

    OF_THE_CUT: ClassVar[tuple[str, ...]] = (
        *Experiment.OF_THE_CUT,
        *("after", "label_side", "frozen_edge", "forward", "backward"),
        *("leak", "edge_dropout", "scrutinize"),
    )
    WATCHING: ClassVar[tuple[str, ...]] = (*Scaled.WATCHING, "map_rows")
    SCORES: ClassVar[dict[str, Callable]] = SCORES  # by what a run may be scored

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.dtype, "dtype", tuple(DTYPES))
        check(self.label_side, "label_side", ("cloud", "edge"))
        if self.metric:
            check(self.metric, "metric", tuple(self.SCORES))
        if self.send_once and not self.frozen_edge:
            raise ValueError(
                "send_once=True needs frozen_edge=True: an edge that learns has "
                "something new to send in every epoch"
            )
        if self.data_dir and not any(map(has_folder, self.task.split("+"))):
            raise ValueError(
                f"data_dir={self.data_dir!r} with task={self.task!r}: SST-2, CoLA, "
                "MRPC, RTE and tfds:NAME are read from it, nothing else; leave it empty"
            )
        if self.leak:
            leak_loss(self.leak)
            if self.frozen_edge:
                raise ValueError(
                    f"leak={self.leak} is a loss for the edge to learn from, and "
                    "frozen_edge=True keeps it from learning"
                )
        if self.scrutinize and self.frozen_edge:
            raise ValueError(
                "scrutinize=True watches the gradients that an edge gets, and with "
                "frozen_edge=True none are sent"
            )
        for text in filter(None, (self.forward, self.backward)):
            codec_of(text)

    def places(self) -> tuple[str, ...]:
        """Where a split run is cut, the labels' side left aside."""
        return self.after

    def link(self) -> Link:
        """The codecs of a cut."""
        forward, backward = (
            codec_of(text) if text else chain()
            for text in (self.forward, self.backward)
        )
        return Link(forward, backward)

    def started(
        self,
        stages: Sequence[Stage],
        seed: int,
        x: Tree,
        given: Callable[[], tuple[Tree, Tree]] | None,
    ) -> tuple[Tree, Tree]:
        """Parameters and state of a model, by stage name.

        Args:
          stages: the model.
          seed: of what is not pretrained.
          x: an input (arrays or specs).
          given: gives pretrained parameters and statistics; None for specs alone.
        """
        key, spec = jax.random.key(seed), spec_of(x)
        if given is None:
            return jax.eval_shape(
                lambda: pretrained.start(stages, {}, key=key, spec=spec)
            )
        params, statistics = given()
        return pretrained.start(
            stages, params, key=key, spec=spec, statistics=statistics
        )

    def split_of(self, stages: Sequence[Stage], loss: Callable) -> Split:
        """A model cut at this experiment's places, with its links and its loss."""
        places: tuple[str, ...] = ()
        if self.mode == "split":
            places = self.places()
            if len(places) % 2 and self.label_side == "edge":
                places += (stages[-1].name,)
        made = cut(self.recomputed(stages), after=places)
        if self.leak and places:
            made = guarded(made, leak_loss(self.leak), behind=stages[0].name)
        if places and not self.edge_dropout:
            segments: Any = (still(made.segments[0]), *made.segments[1:])
            made = dataclasses.replace(made, segments=segments)
        links = [self.link() for _ in places]
        if places and places[-1] == stages[-1].name:
            # Logits and their gradients are few: they cross whole.
            links[-1] = Link(chain(), chain())
        frozen = 1 if self.frozen_edge and places else 0
        return Split(made, tuple(links), loss, frozen)

    def constrained(
        self, tx: optax.GradientTransformation, params: Tree, steps: int, per_epoch: int
    ) -> optax.GradientTransformation:
        """An optimizer with what the parameters must obey; here, nothing.

        Args:
          tx: of a party, which sees parameters by segment, then by stage name.
          params: of the whole model, by stage name (arrays or specs).
          steps: of the run.
          per_epoch: steps.
        """
        del params, steps, per_epoch
        return tx

    def parts_of(
        self,
        split: Split,
        params: Tree,
        state: Tree,
        x: Tree,
        *,
        seed: int,
        about: Task,
        steps_per_epoch: int,
        width: int,
    ) -> Parts:
        """All parts but the data.

        Args:
          split: the cut model.
          params: of the whole model, by stage name.
          state: likewise.
          x: an input (arrays or specs).
          seed: of what the optimizer draws.
          about: the task.
          steps_per_epoch: optimizer steps.
          width: see `Parts.baseline_width`.
        """
        steps, apart = steps_per_epoch * self.epochs, len(split) > 1
        steps = min(steps, self.steps) if self.steps else steps
        tx = self.constrained(self.tx(steps, seed), params, steps, steps_per_epoch)
        tx = self.widened(tx, seed)
        exact = self.exact_norm and bool(self.clip)
        watch = scrutinizer() if self.scrutinize and apart else None
        rows, size = jax.tree.leaves(x)[0].shape[0], -(-self.batch_size // self.micro)
        owned = split.cut.partition(self.narrowed(params))
        parts = Parts(
            split=split,
            protocol=functools.partial(
                split_learning,
                edge_tx=tx,
                micro=self.micro,
                exact_norm=exact,
                watch=watch,
            ),
            params=self.tapped(split, owned, split.cut.partition(state), x),
            state=split.cut.partition(state),
            score=self.SCORES[self.metric or about.metric],
            score_name=self.metric or about.metric,
            baseline_width=width if apart else 0,
            setup_bytes=tree_bytes(owned[0]) if apart else 0,
            send_once=self.send_once and apart,
            edge_share=edge_share(split.cut, params, state, x),
            examples=rows // size * steps_per_epoch * self.batch_size,
        )
        _ = parts.algorithm  # what it refuses is said before anything runs
        return parts

    def check_target(self, batch: dict[str, Any], *rest: int) -> None:
        """Raises a ValueError for specs of labels that do not fit the batch size.

        Args:
          batch: the specs.
          *rest: the shape of one label; of a class or a number there is none.
        """
        target, shape = batch.get("target"), (-(-self.batch_size // self.micro), *rest)
        if target is not None and not (
            set(target) == {"y", "n_valid"}
            and target["y"].shape == shape
            and target["n_valid"].shape == batch["weight"].shape == ()
        ):
            raise ValueError(f"a target is y {shape} and n_valid: {target!s:.200}")

    def label_range(self, facts: dict) -> tuple[int, int]:
        """See `Experiment.label_range`."""
        return 0, facts["classes"]
