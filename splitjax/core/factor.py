"""A factor: what stands in a parameter tree where a dense leaf stood."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform

import jax

from splitjax.core.tree import Tree, is_float, path_name, spec_of

F = TypeVar("F", bound=type)


class Factor:
    """A node of a parameter tree that stands for one dense leaf.

    A subclass is made by `@register_factor`; its fields are arrays (floats, so that
    autodiff passes; whole numbers only where nothing trains them, see
    `core.gradient`), or marked `dataclasses.field(metadata={"static": True})`. It
    defines `materialize`, and `dot` where that is cheaper than the product with the
    dense leaf. It acts on the last two axes (I, J); leading axes are a batch.

    Attributes:
      closed: of a class: why no other transform may work on its arrays; empty: any may.
      adaptable: of a class that is closed: whether an adapter may stand beside it,
        which leaves its arrays as they are.
      layout: of a class: how its arrays are matrices, see `core.matrix.LAYOUTS`.

    Example:
      >>> import jax.numpy as jnp
      >>> @register_factor
      ... class Outer(Factor):
      ...     u: jax.Array
      ...     v: jax.Array
      ...     def materialize(self):
      ...         return self.u @ self.v
      >>> outer = Outer(jnp.ones((3, 1)), jnp.ones((1, 2)))
      >>> outer.spec.shape, outer.dot(jnp.ones((5, 3))).shape
      ((3, 2), (5, 2))
    """

    closed: ClassVar[str] = ""
    adaptable: ClassVar[bool] = False
    layout: ClassVar[str] = "dense"

    def materialize(self) -> jax.Array:
        """The dense leaf `(..., I, J)`.

        Example:
          >>> Factor().materialize()
          Traceback (most recent call last):
          ...
          NotImplementedError: Factor defines no materialize()
        """
        raise NotImplementedError(f"{type(self).__name__} defines no materialize()")

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (..., I)` times the dense leaf; see the function `dot`.

        Example:
          >>> Factor().dot(None)
          Traceback (most recent call last):
          ...
          NotImplementedError: Factor defines no materialize()
        """
        return dot(self.materialize(), x)

    @property
    def numbers(self) -> int:
        """How many numbers it holds, of factors inside of it theirs."""
        parts = jax.tree.leaves(self, is_leaf=lambda n: is_factor(n) and n is not self)
        return sum(part.numbers if is_factor(part) else part.size for part in parts)

    @property
    def spec(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the dense leaf, without computing it."""
        return jax.eval_shape(lambda factor: factor.materialize(), self)


@dataclass_transform(frozen_default=True)
def register_factor(cls: F) -> F:
    """Makes a subclass of `Factor` a frozen dataclass and a pytree node.

    Raises:
      TypeError: when the class is no subclass of `Factor`.

    Example:
      >>> register_factor(int)
      Traceback (most recent call last):
      ...
      TypeError: register_factor needs a subclass of Factor: int
    """
    if not issubclass(cls, Factor):
        raise TypeError(f"register_factor needs a subclass of Factor: {cls.__name__}")
    node = jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))
    return cast(F, node)


def is_factor(node: Any) -> bool:
    """Tells whether a node is a `Factor`: an `is_leaf` for `jax.tree.map` and `where`.

    Example:
      >>> is_factor(Factor()), is_factor(1.0)
      (True, False)
    """
    return isinstance(node, Factor)


def dot(kernel: jax.Array | Factor, x: jax.Array) -> jax.Array:
    """The product `x @ kernel` of a layer, whether its kernel is dense or a factor.

    Args:
      kernel: (I, J), or (E, I, J) with a leading batch that `x` has too.
      x: (..., I), or (E, ..., I); of the kernel's dtype.

    Returns:
      (..., J), or (E, ..., J).

    Raises:
      TypeError: when the dtypes differ; nothing is promoted silently.
      ValueError: when the widths differ.

    Example:
      >>> import jax.numpy as jnp
      >>> dot(jnp.ones((3, 2)), jnp.ones((4, 5, 3))).shape
      (4, 5, 2)
    """
    if isinstance(kernel, Factor):
        return kernel.dot(x)
    if kernel.dtype != x.dtype:
        raise TypeError(
            f"dot of a kernel of {kernel.dtype} and an input of {x.dtype}: cast one "
            "to the dtype that you want to compute in"
        )
    lead = kernel.ndim - 2
    if lead < 0 or kernel.shape[:lead] + kernel.shape[lead : lead + 1] != (
        x.shape[:lead] + x.shape[-1:]
    ):
        raise ValueError(
            f"dot of a kernel {kernel.shape} and an input {x.shape}: the kernel is "
            "(I, J) for an input (..., I), or both have the same leading axes"
        )
    batch = tuple(range(lead))
    # One row axis: with several, XLA on a CPU transposes a copy of the gradient of the
    # output for that of the kernel, which takes longer, for the same numbers.
    rows = math.prod(x.shape[lead:-1])
    flat = x.reshape(*x.shape[:lead], rows, x.shape[-1])
    summed = (lead + 1,), (lead,)
    y = jax.lax.dot_general(flat, kernel, (summed, (batch, batch)))
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def cast_floats(tree: Tree, dtype: Any) -> Tree:
    """A kernel, dense or a factor, or a tree of them, its floats in another dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> cast_floats(jnp.ones(2), jnp.bfloat16).dtype.name
      'bfloat16'
    """
    return jax.tree.map(lambda a: a.astype(dtype) if is_float(a) else a, tree)


def materialize(params: Tree) -> Tree:
    """Parameters with every factor as the dense leaf it stands for.

    A foreign module reads its parameters so, inside the loss: gradients then reach the
    arrays of the factor.

    Example:
      >>> materialize({"bias": 1.0})
      {'bias': 1.0}
    """
    return jax.tree.map(
        lambda node: node.materialize() if is_factor(node) else node,
        params,
        is_leaf=is_factor,
    )


def factorize(
    fit: Callable[..., Factor],
    params: Tree,
    where: Callable[[Tree], Tree],
    *trees: Tree,
    beside: bool = False,
) -> Tree:
    """Puts factors in the place of the chosen leaves.

    Args:
      fit: `(leaf, *leaves of the trees at the same place) -> Factor` for that leaf.
      params: the parameters. A factor among them is one leaf here: `where` sees its
        spec under its own path, and `fit` gets the factor.
      where: `core.tree.where(pattern)`, or any function from the tree to a tree of
        bools.
      *trees: further trees of the structure of `params` (a Fisher tree).
      beside: whether `fit` keeps a factor whole, as the base of what it makes: one that
        is closed but `adaptable` may then be chosen.

    Returns:
      The parameters, the leaves that were not chosen being the very same objects.

    Raises:
      ValueError: when nothing is chosen, when a tree has another structure, when a
        chosen factor holds a closed one, or when a factor stands for another shape or
        dtype than its leaf.
      TypeError: when `fit` returns something else than a `Factor`.
      Exception: what `fit` raises, with a note that names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.tree import where
      >>> @register_factor
      ... class Double(Factor):
      ...     half: jax.Array
      ...     def materialize(self):
      ...         return 2 * self.half
      >>> params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> new = factorize(lambda w: Double(w / 2), params, where(".*/kernel"))
      >>> type(new["a"]["kernel"]).__name__, new["a"]["bias"] is params["a"]["bias"]
      ('Double', True)
    """
    found, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_factor)
    nodes = [node for _, node in found]
    seen = [node.spec if is_factor(node) else node for node in nodes]
    chosen = treedef.flatten_up_to(where(treedef.unflatten(seen)))
    if not any(chosen):
        names = "\n  ".join(path_name(path) for path, _ in found)
        raise ValueError(f"factorize: where chooses no leaf of:\n  {names}")
    for (path, node), yes in zip(found, chosen, strict=True):
        if yes:
            _refuse_closed(path_name(path), node, beside)
    rows = [_leaves(treedef, tree, index) for index, tree in enumerate(trees)]

    def one(path, node, yes, *others):
        return _fitted(fit, path_name(path), node, others) if yes else node

    paths = [path for path, _ in found]
    return treedef.unflatten(map(one, paths, nodes, chosen, *rows))


def _refuse_closed(name: str, node: Any, beside: bool) -> None:
    for part in jax.tree.leaves(node, is_leaf=_is_closed):
        if _is_closed(part) and not (beside and part.adaptable):
            raise ValueError(f"{name} is closed: {part.closed}")


def _is_closed(node: Any) -> bool:
    return isinstance(node, Factor) and bool(node.closed)


def _leaves(treedef, tree: Tree, index: int) -> list:
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"factorize: tree {index} has another structure than params: {error}"
        ) from None


def _fitted(fit: Callable[..., Factor], name: str, leaf: Any, others: tuple) -> Factor:
    try:
        factor = fit(leaf, *others)
    except Exception as error:  # of one leaf among many: which one, only we know
        error.add_note(f"in factorize, at the leaf {name!r}")
        raise
    return _checked(name, leaf, factor)


def _checked(name: str, leaf: Any, factor: Any) -> Factor:
    if not is_factor(factor):
        raise TypeError(
            f"fit made a {type(factor).__name__} of {name!r}; it must return a Factor"
        )
    want, spec = leaf.spec if is_factor(leaf) else spec_of(leaf), factor.spec
    if (spec.shape, spec.dtype) != (want.shape, want.dtype):
        raise ValueError(
            f"fit made a factor for {spec.shape} {spec.dtype} of {name!r}, which is "
            f"{want.shape} {want.dtype}"
        )
    return factor
