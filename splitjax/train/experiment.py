"""An experiment: a dataclass whose fields are options and whose methods build parts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self

import optax

from splitjax.core.algorithm import Algorithm
from splitjax.core.split import Split
from splitjax.core.tree import Tree
from splitjax.optim.clip import clip_by_global_norm
from splitjax.optim.decay import decayed
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.piped import piped
from splitjax.parallel.spread import spread
from splitjax.train.pipe_options import check_pipe

ATTACKS = ("inversion", "decoder", "label", "dcor")  # see `train.attack`


def option(default: Any, meaning: str) -> Any:
    """A field of an experiment, with what `--help` says of it.

    Example:
      >>> @dataclasses.dataclass
      ... class Mine(Experiment):
      ...     depth: int = option(2, "hidden layers")
      >>> Mine().depth
      2
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def check(value: Any, name: str, allowed: tuple) -> None:
    """Raises a ValueError unless an option has one of the allowed values.

    Example:
      >>> check("split", "mode", ("split", "unsplit"))
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: it must be one of {allowed}")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What an experiment builds, and `train.loop` runs.

    Attributes:
      split: the cut model with its links and its loss.
      protocol: makes the algorithm of the split, or of one that runs otherwise.
      params: by segment; specs at an edge, whose weights are the cloud's.
      state: by segment, likewise.
      score: `(predicted, wanted) -> float` on the host, of all rows of a data split.
      score_name: what it is called.
      rows: `(output, wanted) -> (predicted, wanted)` of a batch: what the score needs
        of them, where that is less; a row for each example.
      lower_is_better: whether the score falls as a model improves.
      baseline_width: the width of the layer boundary whose float32 traffic the bytes
        are compared with; 0 where there is no cut.
      setup_bytes: what is sent before the first step.
      send_once: whether the cloud keeps what the first epoch sent it.
      edge_share: the edge's part of the floating-point operations of a forward pass.
      examples: ids of rows of an input are below it; see `loop.tick_batch`.
      train: the batches to learn from; see `splitjax.data.Batches`.
      evals: the batches to score on, by the name of the data split.
      facts: what a cloud must know of the data, as JSON types.
    """

    split: Split
    protocol: Callable[[Split], Algorithm]
    params: tuple
    state: tuple
    score: Any
    score_name: str
    rows: Any = None
    lower_is_better: bool = False
    baseline_width: int = 0
    setup_bytes: int = 0
    send_once: bool = False
    edge_share: float = 1.0
    examples: int = 0
    train: Any = None
    evals: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def algorithm(self) -> Algorithm:
        """The protocol, of this split."""
        return self.protocol(self.split)


@dataclasses.dataclass
class Experiment:
    """Options that every experiment has; a system adds its own in a subclass."""

    task: str = option("", "the data set's name, or a CSV or JSONL file")
    mode: str = option(
        "split", "'split'; 'processes': its halves in two; 'unsplit': without a cut"
    )
    compare: bool = option(False, "also run un-split, for the report")
    seeds: tuple[int, ...] = option((0,), "one run each; mean and deviation over them")
    epochs: int = option(3, "passes over the training data")
    steps: int = option(0, "optimizer steps at most; 0: as many as the epochs have")
    batch_size: int = option(32, "examples in one optimizer step")
    micro: int = option(1, "micro-batches (ticks) in one optimizer step")
    in_flight: int = option(1, "micro-batches under way at once, at most `micro`")
    learning_rate: float = option(5e-5, "the peak of the schedule")
    unsplit_rate: float = option(0.0, "that of the un-split run; 0: learning_rate too")
    schedule: str = option(
        "linear", "after the warm-up: 'linear', 'cosine', 'constant'"
    )
    warmup: float = option(0.1, "the share of the steps in which the rate rises")
    optimizer: str = option(
        "adamw", "'adamw'; 'sgd': with a momentum of 0.9; 'kfac': see kfac_damping"
    )
    weight_decay: float = option(0.01, "the optimizer's, on kernels and embeddings")
    clip: float = option(1.0, "the largest norm of the gradient; 0: no clipping")
    exact_norm: bool = option(
        True, "clip by the norm over both parties (one more hop); False: per party"
    )
    eval_every: int = option(0, "epochs between scores; 0: after the last one only")
    checkpoint_every: int = option(0, "steps between checkpoints; 0: each epoch")
    attack: tuple[str, ...] = option(
        (), f"at the end, what the messages give away: some of {ATTACKS}"
    )
    mesh: str = option(
        "",
        "the cloud's devices, as 'data=2,pipe=2,tensor=2'; empty: it computes on one "
        "(a CPU has as many as JAX_NUM_CPU_DEVICES says)",
    )
    pipe_micro: int = option(
        0, "micro-batches in the cloud's pipeline (pipe of its mesh); 0: it chooses"
    )
    debug: bool = option(False, "run without jit")
    privacy_delta: float = option(
        1e-5, "the chance that the budget of a link with noise does not hold"
    )
    profile: int = option(0, "trace this many steps with jax.profiler")

    OPTIMIZERS: ClassVar[tuple[str, ...]] = ("adamw", "sgd")

    # Options that choose where a run is and how it is watched, not what it computes
    # (though a pipeline's dropout draws other numbers, by the same chance).
    WATCHING: ClassVar[tuple[str, ...]] = (
        "compare",
        "seeds",
        "eval_every",
        "checkpoint_every",
        "attack",
        "mesh",
        "pipe_micro",
        "debug",
        "privacy_delta",
        "profile",
    )

    # Options that a run without a cut does not read; a subclass adds its own.
    OF_THE_CUT: ClassVar[tuple[str, ...]] = ("in_flight", "exact_norm")

    def parts(self, seed: int, *, weights: bool = True) -> Parts:
        """Builds everything that a run with this seed needs.

        Args:
          seed: of the run.
          weights: False where a cloud has them: params and state are specs then.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no parts()")

    def model_parts(
        self, seed: int, facts: dict, x: Tree, *, weights: bool = True
    ) -> Parts:
        """All parts but the data: what a cloud builds, who has not seen it.

        Args:
          seed: of the run.
          facts: as the edge gives them; checked by `check_facts`.
          x: specs of an input.
          weights: see `parts`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no model_parts()")

    def check_facts(self, facts: dict) -> None:
        """Raises a ValueError for facts that no data of this experiment has."""

    def check_batch(self, batch: Tree) -> None:
        """Raises a ValueError for specs of a batch that this experiment has not."""

    def label_range(self, facts: dict) -> tuple[int, int]:
        """The least class, and the first that is too large; alike where none are.

        Args:
          facts: which have passed `check_facts`.
        """
        del facts
        return 0, 0

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        check(self.mode, "mode", ("split", "unsplit", "processes"))
        check(self.optimizer, "optimizer", self.OPTIMIZERS)
        check(self.schedule, "schedule", ("linear", "cosine", "constant"))
        for name in ("epochs", "batch_size", "micro", "in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more")
        if self.in_flight > self.micro:
            raise ValueError(
                f"in_flight={self.in_flight} is more than micro={self.micro}: only "
                "micro-batches of one step can be under way together"
            )
        for name in self.attack:
            check(name, "attack", ATTACKS)
        if self.attack and self.mode == "processes":
            raise ValueError(
                "an attack reads both ends of the links: take mode='split' (what "
                "crosses is the same)"
            )
        about = {"optimizer": self.optimizer, "debug": self.debug}
        check_pipe(self.mesh, self.pipe_micro, **about)
        if self.mesh and self.mode == "unsplit":
            raise ValueError(
                f"mesh={self.mesh!r} with mode='unsplit': a mesh is the cloud's, and a "
                "run without a cut computes on one device; leave it away"
            )
        if not 0 < self.privacy_delta < 1:
            raise ValueError(
                f"privacy_delta={self.privacy_delta}: a chance between 0 and 1"
            )
        if not self.seeds:
            raise ValueError("seeds is empty: give one at least, as (0,)")

    def unsplit(self) -> Self:
        """The same without a cut, and so without a cloud and its mesh."""
        return dataclasses.replace(self, mode="unsplit", mesh="", pipe_micro=0)

    def cloud_algorithm(self, parts: Parts) -> Algorithm:
        """The algorithm as the cloud runs it: on its mesh, where it has one.

        Args:
          parts: whose own algorithm an edge runs as is.
        """
        if not self.mesh:
            return parts.algorithm
        mesh = make_cloud_mesh(self.mesh)
        split = piped(parts.split, mesh, microbatches=self.pipe_micro)
        return spread(parts.protocol(split), mesh)

    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate by step, for a run of so many steps."""
        warmup, peak = round(self.warmup * steps), self._peak()
        rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
        left = max(steps - warmup, 1)
        fall = {
            "linear": optax.linear_schedule(peak, 0.0, left),
            "cosine": optax.cosine_decay_schedule(peak, left),
            "constant": optax.constant_schedule(peak),
        }[self.schedule]
        return optax.join_schedules([rise, fall], [warmup]) if warmup else fall

    def rule(self, steps: int) -> optax.GradientTransformation:
        """What steps along clipped gradients."""
        rate = self.rate(steps)
        decay = {"weight_decay": self.weight_decay, "mask": decayed}
        if self.optimizer == "adamw":
            return optax.adamw(rate, eps=1e-8, **decay)
        momentum = optax.sgd(rate, momentum=0.9)
        return optax.chain(optax.add_decayed_weights(**decay), momentum)

    def tx(self, steps: int, seed: int = 0) -> optax.GradientTransformation:
        """The optimizer of one party, for so many steps; this one draws nothing."""
        del seed
        rule = self.rule(steps)
        return optax.chain(clip_by_global_norm(self.clip), rule) if self.clip else rule

    def _peak(self) -> float:
        own = self.unsplit_rate if self.mode == "unsplit" else 0.0
        return own or self.learning_rate

    def identity(self, seed: int) -> dict:
        """What decides the numbers of one run: a checkpoint of another is refused.

        The un-split runs of two cuts are the same run.
        """
        fields = dataclasses.asdict(self)
        free = {*self.WATCHING, *(self.OF_THE_CUT if self.mode == "unsplit" else ())}
        free.add("unsplit_rate")
        fields["learning_rate"] = self._peak()
        kept = {k: v for k, v in fields.items() if k not in free}
        return {"experiment": type(self).__name__, **kept, "seed": seed}
