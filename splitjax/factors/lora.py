"""LoRA: a frozen kernel plus a trained product of low rank."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from splitjax.core.factor import (
    Factor,
    dot,
    factorize,
    is_factor,
    materialize,
    register_factor,
)
from splitjax.core.gradient import frozen_product
from splitjax.core.keys import fold
from splitjax.core.tree import Tree, is_float, path_name, spec_of


@register_factor
class Lora(Factor):
    """A kernel `base (I, J) + scale * a (I, R) @ b (R, J)`; leading axes are a batch.

    No gradient reaches the base; an optimizer that decays weights must leave it out as
    well, see `only_adapters`.

    Attributes:
      base: dense, or another factor, as a `quantized.Quantized` (QLoRA); frozen.
      a: trained.
      b: trained, zeros at first.
      scale: alpha / R.

    Example:
      >>> factor = fit(jnp.eye(3), jax.random.key(0), rank=1)
      >>> factor.dot(jnp.arange(3.0)).tolist(), factor.a.shape
      ([0.0, 1.0, 2.0], (3, 1))
    """

    base: jax.Array | Factor
    a: jax.Array
    b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})

    def materialize(self) -> jax.Array:
        """The merged kernel `(..., I, J)`."""
        base = materialize(jax.lax.stop_gradient(self.base))
        return base + self.scale * (self.a @ self.b)

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (..., I)` times the kernel: the adapter through its R dimensions."""
        low = dot(self.b, dot(self.a, x))
        return frozen_product(dot, self.base, x) + self.scale * low


def fit(
    kernel: jax.Array | Factor, key: jax.Array, *, rank: int, alpha: float | None = None
) -> Lora:
    """An adapter of zero effect beside a kernel: a is random, b is zero.

    Args:
      kernel: (..., I, J), floating; or a factor, which stays one.
      key: of the random numbers of a.
      rank: R, from 1 to min(I, J).
      alpha: the product is scaled by alpha / R. R by default: a scale of 1.

    Raises:
      ValueError: for a rank outside of its range, a leaf that is no matrix, or an alpha
        that is not above 0.
      TypeError: for a leaf that is not of floats.

    Example:
      >>> factor = fit(jnp.ones((4, 3)), jax.random.key(0), rank=2, alpha=16)
      >>> factor.scale, bool((factor.materialize() == 1).all())
      (8.0, True)

    Reference:
      E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
      arXiv:2106.09685, section 4.1 and equation (3); their A and B are our a and b,
      transposed.
    Differs:
      The paper's Gaussian has no stated width; ours has the variance 1 / I, so that
      `x @ a` is as large as x. There is no dropout before the adapter.
    """
    spec = kernel.spec if isinstance(kernel, Factor) else kernel
    if not is_float(spec):
        raise TypeError(f"LoRA adapts floats; this leaf is {spec.dtype}")
    if spec.ndim < 2:
        raise ValueError(f"LoRA adapts matrices; this leaf is {spec.shape}")
    *lead, rows, columns = spec.shape
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(
            f"rank {rank} of a kernel {spec.shape}: it must be from 1 to "
            f"{min(rows, columns)}"
        )
    alpha = float(rank if alpha is None else alpha)
    if not alpha > 0:
        raise ValueError(f"alpha {alpha}: it must be above 0")
    normal = jax.random.normal(key, (*lead, rows, rank)) * rows**-0.5
    zeros = jnp.zeros((*lead, rank, columns), spec.dtype)
    return Lora(kernel, normal.astype(spec.dtype), zeros, alpha / rank)


def adapt(
    params: Tree,
    where: Callable[[Tree], Tree],
    rank: int,
    *,
    key: jax.Array,
    alpha: float | None = None,
) -> Tree:
    """`factorize` with `fit`: each chosen kernel gets an adapter of its own numbers.

    Args:
      params: the parameters.
      where: which kernels, a factor being one leaf.
      rank: of all adapters.
      key: folded with each leaf's path.
      alpha: as of `fit`.

    Example:
      >>> from splitjax.core.tree import where
      >>> params = {"wi": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
      >>> new = adapt(params, where(".*/kernel"), 2, key=jax.random.key(0))
      >>> new["wi"]["kernel"].b.shape, new["wi"]["bias"] is params["wi"]["bias"]
      ((2, 3), True)
    """
    keys = jax.tree_util.tree_map_with_path(
        lambda path, _: fold(key, path_name(path)), params, is_leaf=is_factor
    )

    def one(kernel, own):
        return fit(kernel, own, rank=rank, alpha=alpha)

    return factorize(one, params, where, keys, beside=True)


def merge(params: Tree) -> Tree:
    """Parameters with each adapter added to its base: dense kernels, to be served.

    Other factors stay; one that was a base becomes dense.

    Example:
      >>> factor = fit(jnp.eye(2), jax.random.key(0), rank=1)
      >>> merge({"kernel": factor})["kernel"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    return jax.tree.map(
        lambda node: node.materialize() if _is_lora(node) else node,
        params,
        is_leaf=is_factor,
    )


def adapters(params: Tree) -> Tree:
    """A `where` for optimizers: True at a and b of each adapter, and nowhere else.

    Raises:
      ValueError: when there is no adapter.

    Example:
      >>> factor = fit(jnp.eye(2), jax.random.key(0), rank=1)
      >>> chosen = adapters({"kernel": factor, "bias": jnp.ones(2)})
      >>> chosen["kernel"].base, chosen["kernel"].a, chosen["bias"]
      (False, True, False)
    """

    def one(node):
        none = jax.tree.map(lambda _: False, node)
        return dataclasses.replace(none, a=True, b=True) if _is_lora(node) else none

    chosen = jax.tree.map(one, params, is_leaf=_is_lora)
    if not any(jax.tree.leaves(chosen)):
        raise ValueError("there is no LoRA adapter in these parameters: see lora.adapt")
    return chosen


def only_adapters(
    tx: optax.GradientTransformation, also: Callable[[Tree], Tree] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Trains adapters, and what else is named; all others stay to the bit.

    Gradients of the others are dropped before they reach `tx`, which holds no state
    for them and decays none of them. A party of a cut model that holds no adapter takes
    `optax.set_to_zero()` instead.

    Args:
      tx: such as `optax.adamw(1e-3)`.
      also: a `where` of further leaves: a fresh head.

    Example:
      >>> params = {"kernel": fit(jnp.eye(2), jax.random.key(0), rank=1)}
      >>> tx = only_adapters(optax.adamw(0.1, weight_decay=0.5))
      >>> grads = jax.tree.map(jnp.ones_like, params)
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> bool(updates["kernel"].base.any()), bool(updates["kernel"].b.any())
      (False, True)
    """

    def labels(params):
        chosen = adapters(params)
        if also is not None:
            chosen = jax.tree.map(lambda a, b: a or b, chosen, also(params))
        return jax.tree.map(lambda yes: "train" if yes else "freeze", chosen)

    return optax.partition({"train": tx, "freeze": optax.set_to_zero()}, labels)


def parameters(params: Tree) -> tuple[int, int]:
    """How many numbers the adapters hold, and how many there are in all.

    Example:
      >>> parameters({"kernel": fit(jnp.eye(4), jax.random.key(0), rank=1)})
      (8, 24)
    """
    specs = jax.tree.leaves(spec_of(params))
    chosen = jax.tree.leaves(adapters(params))
    trained = sum(s.size for s, yes in zip(specs, chosen, strict=True) if yes)
    nodes = jax.tree.leaves(params, is_leaf=is_factor)
    return trained, sum(n.numbers if is_factor(n) else n.size for n in nodes)


def _is_lora(node) -> bool:
    return isinstance(node, Lora)
