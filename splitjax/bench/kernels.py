"""Fused kernels against stock Flax and optax: time, traffic, what a vjp keeps."""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from splitjax import kernels
from splitjax.codecs import residual_bytes
from splitjax.core.message import tree_bytes
from splitjax.core.stage import join
from splitjax.models.bert import bert
from splitjax.models.bert_block import Norm
from splitjax.models.bert_config import BertConfig
from splitjax.optim.flat import flat_by_dtype
from splitjax.train.timing import Part, Row, Timed, rows

MB, GB = 1e6, 1e9


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the inputs are.

    Attributes:
      tokens: rows of a layer norm.
      width: of its rows.
      targets: rows of logits.
      classes: of their columns.
      layers: of the BERT whose parameters Adam moves.
      batch: texts through one layer.
      length: of a text.
      model: of the layer.
    """

    tokens: int
    width: int
    targets: int
    classes: int
    layers: int
    batch: int
    length: int
    model: BertConfig = BertConfig()


# A GPU is full only with arrays that are large beside its caches.
SIZES = {
    "cpu": Sizes(1024, 384, 64, 30522, 2, 8, 64),
    "gpu": Sizes(2**15, 4096, 2**13, 50257, 24, 64, 128),
}
SIZES["tpu"] = SIZES["gpu"]


def sizes() -> Sizes:
    """Those of the device that JAX has.

    Example:
      >>> sizes() in SIZES.values()
      True
    """
    return SIZES[jax.default_backend()]


def impls() -> tuple[str, ...]:
    """The ways worth timing here: on a CPU a Pallas program is only interpreted.

    Example:
      >>> "xla" in impls()
      True
    """
    return ("xla",) if jax.default_backend() == "cpu" else ("xla", "pallas")


def block(timed: Timed) -> list[Row]:
    """A BERT layer, forward and backward with dropout: fused and stock."""
    s, steps, made = sizes(), {}, {}
    texts = {"ids": jnp.zeros((s.batch, s.length), jnp.int32)}
    texts["mask"] = jnp.ones((s.batch, s.length), bool)
    h = jax.random.normal(jax.random.key(1), (s.batch, s.length, s.model.width))
    x = {"h": h, "mask": texts["mask"]}
    for name, fused in (("stock", ""), ("fused", "auto")):
        config = dataclasses.replace(s.model, layers=1, fused=fused)
        _, *stages = bert(config)
        layer = join(stages)
        params, state = layer.init(jax.random.key(0), x)

        def run(params, h, layer=layer, state=state):
            more = {"key": jax.random.key(2), "train": True}
            y, _, _ = layer.apply(params, state, {**x, "h": h}, **more)
            return y["h"]

        step = jax.jit(
            jax.grad(lambda p, h, run=run: jnp.square(run(p, h)).sum(), (0, 1))
        )
        made[name] = {
            "bytes accessed": traffic(step, params, h),
            "bytes kept for the backward pass": residual_bytes(run, params, h),
        }
        steps[f"BERT layer, {name}"] = functools.partial(step, params, h)
    found = rows(timed(steps), "BERT layer, stock", {})
    for what, of_stock in made["stock"].items():
        found.append(
            {
                "name": f"BERT layer, fused: {what}",
                "value": made["fused"][what] / MB,
                "unit": "MB",
                "reference": f"stock, {of_stock / MB:.1f} MB",
                "ratio": made["fused"][what] / of_stock,
                "bound": None,
            }
        )
    return found


def layer_norm(timed: Timed) -> list[Row]:
    """Forward and backward; at the least five arrays are moved."""
    s = sizes()
    x, dy = (jax.random.normal(jax.random.key(i), (s.tokens, s.width)) for i in (0, 1))
    scale, bias = jnp.ones(s.width), jnp.zeros(s.width)
    module = Norm(1e-6)

    def stock(x, scale, bias):
        return module.apply({"params": {"scale": scale, "bias": bias}}, x)

    ways: dict[str, Callable] = {"stock": stock}
    for impl in impls():
        ways[f"fused, {impl}"] = functools.partial(kernels.layer_norm, impl=impl)
    steps = {
        f"layer norm, {way}": functools.partial(_pulled(f), dy, x, scale, bias)
        for way, f in ways.items()
    }
    return _against(timed, steps, "layer norm, stock", 5 * x.nbytes)


def cross_entropy(timed: Timed) -> list[Row]:
    """With label smoothing; logits are read twice and their gradient written."""
    s = sizes()
    logits = jax.random.normal(jax.random.key(0), (s.targets, s.classes))
    labels = jnp.arange(s.targets, dtype=jnp.int32)
    alpha = 0.1 * s.classes / (s.classes - 1)

    def stock(logits):
        hot = jax.nn.one_hot(labels, s.classes)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(hot, alpha))

    ways: dict[str, Callable] = {"stock": stock}
    for impl in impls():
        more: dict[str, Any] = {"smoothing": 0.1, "impl": impl}
        ways[f"fused, {impl}"] = functools.partial(
            kernels.cross_entropy, labels=labels, **more
        )
    dy = jnp.ones(s.targets)
    steps = {
        f"cross entropy, {way}": functools.partial(_pulled(f), dy, logits)
        for way, f in ways.items()
    }
    return _against(timed, steps, "cross entropy, stock", 3 * logits.nbytes)


def adam(timed: Timed) -> list[Row]:
    """A step on a BERT's leaves; seven numbers of each parameter are moved at least."""
    s = sizes()
    stages = bert(dataclasses.replace(s.model, layers=s.layers, vocab=2048))
    spec = {
        "ids": jax.ShapeDtypeStruct((1, 8), jnp.int32),
        "mask": jax.ShapeDtypeStruct((1, 8), bool),
    }
    params, _ = join(stages).init(jax.random.key(0), spec)
    grads = jax.tree.map(lambda p: 0.01 * p + 0.1, params)
    ways: dict[str, Any] = {"stock": optax.adamw(1e-3, weight_decay=0.01)}
    for impl in impls():
        own = kernels.adam(1e-3, weight_decay=0.01, impl=impl)
        ways |= {f"fused, {impl}": own, f"flat and fused, {impl}": flat_by_dtype(own)}
    steps = {}
    for way, tx in ways.items():

        def move(params, state, tx=tx):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        steps[f"Adam, {way}"] = functools.partial(jax.jit(move), params, state)
    return _against(timed, steps, "Adam, stock", 7 * tree_bytes(params))


def traffic(function: Any, *args: Any) -> float:
    """The bytes that a compiled program accesses, as XLA counts them.

    Example:
      >>> traffic(jax.jit(lambda x: x + 1), jnp.ones(1000))
      8000.0
    """
    return float(function.lower(*args).compile().cost_analysis()["bytes accessed"])


def _pulled(function: Callable) -> Callable:
    @jax.jit
    def run(dy, *args):
        y, pull = jax.vjp(function, *args)
        return y, pull(dy)

    return run


def _against(timed: Timed, steps: dict, reference: str, moved: float) -> list[Row]:
    """Rows of times, and of the share of a copy's speed that each reaches."""
    x = jnp.ones(max(int(moved) // 16, 1))  # of moved / 4 bytes: read, and written
    copy = jax.jit(lambda x: x + 1)
    times = timed({**steps, "copy": lambda: copy(x)})
    speed = 2 * x.nbytes / statistics.median(times.pop("copy"))
    made = rows(times, reference, {})
    for name, values in times.items():
        reached = moved / statistics.median(values)
        made.append(
            {
                "name": f"{name}: of the memory's speed",
                "value": reached / GB,
                "unit": "GB/s",
                "reference": f"a copy, {speed / GB:.1f} GB/s",
                "ratio": reached / speed,
                "bound": None,
            }
        )
    return made


# By the name that --only chooses.
PARTS: dict[str, Part] = {
    "kernels/block": block,
    "kernels/layer_norm": layer_norm,
    "kernels/cross_entropy": cross_entropy,
    "kernels/adam": adam,
}
