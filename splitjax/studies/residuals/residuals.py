"""Training that keeps compressed activations for its backward pass, and exact ones."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from splitjax import data
from splitjax.codecs import bounded, chain, lossless, residual_bytes
from splitjax.core.codec import Context
from splitjax.core.tap import BOUND, Noise, bound_of
from splitjax.core.tree import Tree, spec_of
from splitjax.optim import adapt_bounds
from splitjax.runtime.frame import payload_bytes
from splitjax.studies.residuals.network import ARMS, Network, network, start
from splitjax.train.experiment import check, option
from splitjax.train.report import markdown


@dataclasses.dataclass
class Residuals:
    """Options of the comparison."""

    task: str = option("digits", "an image data set; see `data.load_images`")
    arms: tuple[str, ...] = option(
        tuple(ARMS), "which, of studies.residuals.network.ARMS"
    )
    widths: tuple[int, ...] = option((16, 32), "of 3x3 convolutions before a pool each")
    epochs: int = option(10, "passes over the training pictures")
    steps: int = option(0, "optimizer steps at most; 0: as many as the epochs have")
    batch_size: int = option(64, "pictures of a step")
    learning_rate: float = option(0.05, "of SGD with a momentum of 0.9, constant")
    target: float = option(0.01, "gradient noise over the momentum, as the paper's")
    every: int = option(50, "steps between changes of the bounds; the paper's is 1000")
    first: float = option(1e-3, "every layer's bound at the start")
    seeds: tuple[int, ...] = option((0, 1, 2), "one run of every arm each")
    limit: int = option(0, "pictures of each split at most; 0: all")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        for arm in self.arms:
            check(arm, "arms", tuple(ARMS))
        for name in ("epochs", "batch_size", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more")
        for name in ("steps", "limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 0 or more")
        if self.limit and self.batch_size > self.limit:
            raise ValueError(
                f"batch_size={self.batch_size}: no step has so many pictures with "
                f"limit={self.limit}; take {self.limit} or less"
            )
        if not (self.widths and self.seeds and self.arms):
            raise ValueError("widths, seeds and arms have one entry each at least")

    def pictures(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, H, W, C) float32 from 0 to 1, and their classes, int32.

        Raises:
          ValueError: for sides that cannot be halved once for each convolution.
        """
        table = data.load_images(self.task, split)
        table = table.take(self.limit) if self.limit else table
        halved = 2 ** len(self.widths)
        if any(side % halved for side in table.image.shape[1:3]):
            raise ValueError(
                f"{self.task}: pictures of {table.image.shape[1:3]} cannot be halved "
                f"{len(self.widths)} times: take fewer widths"
            )
        return table.image.astype(np.float32) / 255, table.label.astype(np.int32)


def play(options: Residuals, arm: str, seed: int) -> dict[str, Any]:
    """One run of one arm.

    Args:
      options: of the run.
      arm: one of `ARMS`.
      seed: of weights and order.

    Returns:
      `score` (the test's accuracy), `loss` (mean of the last 50 steps), `bounds` and
      `bytes` by layer (of the inputs of a training batch at the end: float32, and as
      codes within the bound, entropy-coded in a frame), `ratio` of their sums, `kept`
      (what the backward pass keeps, by shapes), `temporary` (of the compiled gradient,
      beside arguments and results), `missed` (values off by more than their bound in
      the run), `missed_share` (of all that were kept within one) and `seconds`. The
      exact arm has no bounds, a ratio of 1 and a share of 0.

    Raises:
      ValueError: for a batch larger than the training split, or as `pictures` does.
    """
    started = time.monotonic()
    (x, y), (x_test, y_test) = (options.pictures(s) for s in ("train", "test"))
    key, made = jax.random.key(seed), network(arm)
    if options.batch_size > len(x):
        raise ValueError(
            f"batch_size={options.batch_size}: no step has so many of the {len(x)} "
            f"pictures of {options.task}; take {len(x)} or less"
        )
    classes, first = int(y.max()) + 1, options.first
    params = start(options.widths, x.shape[1:], classes, bound=first, key=key)
    tx = optax.sgd(options.learning_rate, momentum=0.9)
    if arm == "exact":
        params = {name: _without(leaves) for name, leaves in params.items()}
    else:
        tx = adapt_bounds(tx, target=options.target, every=options.every)

    def update(params, state, x, y, step):
        value, grads = jax.value_and_grad(made.loss)(params, x, y)
        seen = [Noise(*g[BOUND]) for g in grads.values() if BOUND in g]
        off = sum((one.missed for one in seen), start=jnp.float32(0))
        kept = sum((one.values for one in seen), start=jnp.float32(0))
        more = {} if arm == "exact" else {"step": step}
        updates, state = tx.update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state, value, off, kept

    state, rows = tx.init(params), options.batch_size
    shapes = params, state, x[:rows], y[:rows], jnp.int32(0)
    compiled = jax.jit(update).lower(*shapes).compile()
    memory: Any = compiled.memory_analysis()
    order = np.random.default_rng(seed)
    batches = [
        order.permutation(len(x))[: len(x) // rows * rows].reshape(-1, rows)
        for _ in range(options.epochs)
    ]
    losses, missed, values = [], 0.0, 0.0
    steps = np.concatenate(batches)
    for step, chosen in enumerate(steps[: options.steps or len(steps)]):
        args = x[chosen], y[chosen], jnp.int32(step)
        params, state, value, off, kept = compiled(params, state, *args)
        losses.append(float(value))
        missed, values = missed + float(off), values + float(kept)
    logits = jax.jit(made.logits)
    right = [
        np.asarray(logits(params, x_test[at : at + 256])).argmax(-1)
        == y_test[at : at + 256]
        for at in range(0, len(x_test), 256)
    ]
    sizes = _sizes(made, params, x[:rows])
    bounds = {n: float(bound_of(p[BOUND])) for n, p in params.items() if BOUND in p}
    return {
        "score": float(np.concatenate(right).mean()),
        "loss": float(np.mean(losses[-50:])),
        "bounds": bounds,
        "bytes": sizes,
        "ratio": sum(a for a, _ in sizes.values()) / sum(b for _, b in sizes.values()),
        "kept": residual_bytes(made.loss, params, x[:rows], y[:rows]),
        "temporary": memory.temp_size_in_bytes,
        "missed": missed,
        "missed_share": missed / max(values, 1.0),
        "seconds": round(time.monotonic() - started, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds of each arm, as a Markdown table.

    Args:
      rows: `{"name", "runs"}` with runs as `play` gives them.

    Example:
      >>> run = dict.fromkeys(("loss", "ratio", "kept", "temporary"), 1.0)
      >>> run |= {"score": 0.5, "missed": 0.0, "missed_share": 0.0}
      >>> made = table([{"name": "exact", "runs": [run]}])
      >>> made.splitlines()[-1][:16]
      '| exact | 0.5000'
    """
    head = ("arm", "accuracy", "each", "last loss", "ratio", "kept MB", "temporary MB")
    head += ("missed", "of all")
    cells = []
    for r in rows:
        mean = {
            name: float(np.mean([run[name] for run in r["runs"]]))
            for name in (
                *("score", "loss", "ratio", "kept", "temporary"),
                *("missed", "missed_share"),
            )
        }
        cells.append(
            (
                r["name"],
                f"{mean['score']:.4f}",
                " ".join(f"{run['score']:.4f}" for run in r["runs"]),
                f"{mean['loss']:.4f}",
                f"{mean['ratio']:.1f}x",
                f"{mean['kept'] / 1e6:.3f}",
                f"{mean['temporary'] / 1e6:.3f}",
                f"{mean['missed']:.0f}",
                f"{100 * mean['missed_share']:.2g} %",
            )
        )
    return markdown(head, cells)


def _without(leaves: dict) -> dict:
    return {name: leaf for name, leaf in leaves.items() if name != BOUND}


def _sizes(made: Network, params: Tree, x: np.ndarray) -> dict[str, tuple[int, int]]:
    """Bytes of each layer's input: as float32, and in a frame, within its bound."""
    inputs: list[jax.Array] = []

    def seen(layer):
        def run(params, x):
            inputs.append(x)
            return layer(_without(params), x)

        return run

    made._replace(layer=seen).logits(params, jnp.asarray(x))
    sizes = {}
    for (name, leaves), h in zip(sorted(params.items()), inputs, strict=True):
        coded = h.nbytes
        if BOUND in leaves:
            eb = float(bound_of(leaves[BOUND]))
            codec = chain(bounded(eb, block=None), lossless())
            message, _ = codec.encode(h, codec.init(spec_of(h)), Context())
            coded = payload_bytes(jax.device_get(message))
        sizes[name] = (h.nbytes, coded)
    return sizes
