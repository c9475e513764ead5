"""MPO: a kernel as a chain of small cores, and experts that share the largest one."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.factor import Factor, dot, register_factor
from splitjax.core.tree import nearest
from splitjax.factors.mpo_cost import MpoCost, join_costs, mpo_cost

MODES = ("auto", "rebuild", "sequential")
STATIC: dict[str, Any] = {"metadata": {"static": True}}


@register_factor
class Mpo(Factor):
    """A kernel `(I, J)` as cores `T_k (d_{k-1}, i_k, j_k, d_k)`; leading axes a batch.

    Entry ((i_1, ..., i_n), (j_1, ..., j_n)), both row-major, is the product of the
    matrices `T_k[:, i_k, j_k, :]`. `factors.mpo_fit` makes the cores of a kernel.

    Attributes:
      left: the cores before the central one.
      central: the core in the middle.
      right: the cores after it.
      dims: (I, J); the cores may stand for more, which was filled up with zeros.
      mode: how `dot` goes: "rebuild" contracts the cores to the kernel, "sequential"
        takes the input through core after core, "auto" does what costs less at this
        number of tokens (`cost`).

    Example:
      >>> from splitjax.factors.mpo_fit import fit
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> factor = fit(jnp.arange(24.0).reshape(6, 4), mpo_plan(6, 4, 3))
      >>> factor.dot(jnp.ones((5, 6))).shape
      (5, 4)

    Reference:
      Gao et al., Parameter-efficient mixture-of-experts architecture for pre-trained
      language models, 2022, arXiv 2203.01104, after the authors' published code.
    Differs:
      The code rebuilds the kernel on every call; "sequential" is ours.
    """

    left: tuple[jax.Array, ...]
    central: jax.Array
    right: tuple[jax.Array, ...]
    dims: tuple[int, int] = dataclasses.field(**STATIC)
    mode: str = dataclasses.field(default="auto", **STATIC)

    layout = "core"  # a rank of anything else of a core would be no bond

    @property
    def cost(self) -> MpoCost:
        """What a product of one kernel costs, and from how many tokens on which way."""
        return _cost(self.left, self.central, self.right)

    def chosen(self, tokens: int) -> str:
        """The way that `dot` goes for so many tokens: "rebuild" or "sequential"."""
        return _chosen(self.mode, self.cost, tokens)

    def materialize(self) -> jax.Array:
        """The dense kernel `(..., I, J)`."""
        whole = functools.partial(_dense, dims=self.dims)
        for _ in range(self.central.ndim - 4):
            whole = jax.vmap(whole)
        return whole(self.left, self.central, self.right)

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (..., I)` times the kernel; with leading axes `x (E, ..., I)`."""
        lead = self.central.shape[:-4]
        flat = _flat(x, lead, self.dims, self.central.dtype)
        product = functools.partial(
            _product, cost=self.cost, dims=self.dims, mode=self.mode
        )
        for _ in lead:
            product = jax.vmap(product)
        y = product(self.left, self.central, self.right, flat)
        return y.reshape(*x.shape[:-1], self.dims[1])


@register_factor
class MpoExperts(Factor):
    """The kernels `(E, I, J)` of E experts, whose central core is stored once.

    With L_e and R_e the contracted left and right cores of an expert, `W_e = L_e C
    R_e`. The gradient of C is the sum of those that E cores of their own would get.
    `factors.mpo_fit.share` makes it of one kernel.

    Attributes:
      left: cores (E, d, i, j, d') of the experts' own.
      central: the core (d, i, j, d') that they share.
      right: as left.
      dims: (I, J).
      mode: as in `Mpo`, by the tokens of one expert.

    Example:
      >>> from splitjax.factors.mpo_fit import fit, share
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> experts = share(fit(jnp.arange(24.0).reshape(6, 4), mpo_plan(6, 4, 3)), 8)
      >>> experts.spec.shape, experts.dot(jnp.ones((8, 5, 6))).shape
      ((8, 6, 4), (8, 5, 4))

    Reference:
      As `Mpo`: the shared central tensor and the auxiliary ones.
    Differs:
      nothing in what is shared; see `share` for where the values stand.
    """

    left: tuple[jax.Array, ...]
    central: jax.Array
    right: tuple[jax.Array, ...]
    dims: tuple[int, int] = dataclasses.field(**STATIC)
    mode: str = dataclasses.field(default="auto", **STATIC)

    layout = "core"  # a rank of anything else of a core would be no bond

    @property
    def experts(self) -> int:
        """E."""
        return (*self.left, *self.right)[0].shape[0]

    @property
    def cost(self) -> MpoCost:
        """As that of `Mpo`, for one expert."""
        left, right = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype),
            (self.left, self.right),
        )
        return _cost(left, self.central, right)

    def materialize(self) -> jax.Array:
        """The dense kernels `(E, I, J)`."""
        whole = functools.partial(_dense, dims=self.dims)
        return jax.vmap(whole, (0, None, 0))(self.left, self.central, self.right)

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (E, ..., I)`, each expert's tokens, times the kernels."""
        flat = _flat(x, (self.experts,), self.dims, self.central.dtype)
        product = functools.partial(
            _product, cost=self.cost, dims=self.dims, mode=self.mode
        )
        product = jax.vmap(product, (0, None, 0, 0))
        y = product(self.left, self.central, self.right, flat)
        return y.reshape(*x.shape[:-1], self.dims[1])

    def expert(self, index: int) -> Mpo:
        """One expert's kernel: its own cores and the shared one."""
        left, right = jax.tree.map(lambda a: a[index], (self.left, self.right))
        return Mpo(left, self.central, right, self.dims, self.mode)


def contract(cores: Sequence[Any], central: int) -> Any:
    """The dense matrix of a chain of cores, in the cheaper of two orders.

    Args:
      cores: T_k (d_{k-1}, i_k, j_k, d_k) of JAX or NumPy; the outer bonds are 1.
      central: the index of the core at which both ends are joined.

    Returns:
      (prod i_k, prod j_k).

    Example:
      >>> contract([jnp.ones((1, 2, 1, 2)), jnp.ones((2, 3, 4, 1))], 1).shape
      (6, 4)
    """
    left, middle, right = cores[:central], cores[central], cores[central + 1 :]
    d, _, _, e = middle.shape
    costs = join_costs([core.shape for core in cores], central)
    if costs[0] <= costs[1]:
        whole = _onto_left(left, middle.reshape(d, -1)).reshape(-1, e)
        whole = _onto_right(whole, right)
    else:
        whole = _onto_right(middle.reshape(-1, e), right).reshape(d, -1)
        whole = _onto_left(left, whole)
    ins, outs = [c.shape[1] for c in cores], [c.shape[2] for c in cores]
    pairs = [n for pair in zip(ins, outs, strict=True) for n in pair]
    apart = *range(0, len(pairs), 2), *range(1, len(pairs), 2)
    return whole.reshape(pairs).transpose(apart).reshape(math.prod(ins), -1)


def _onto_left(cores: Sequence[Any], matrix: Any) -> Any:
    """The contracted cores (P, d) times a matrix (d, ...)."""
    if not cores:
        return matrix
    whole = cores[0].reshape(-1, cores[0].shape[-1])
    for core in cores[1:]:
        whole = (whole @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[-1])
    return whole @ matrix


def _onto_right(matrix: Any, cores: Sequence[Any]) -> Any:
    """A matrix (..., e) times the contracted cores (e, Q)."""
    if not cores:
        return matrix
    whole = cores[-1].reshape(cores[-1].shape[0], -1)
    for core in reversed(cores[:-1]):
        whole = (core.reshape(-1, core.shape[-1]) @ whole).reshape(core.shape[0], -1)
    return matrix @ whole


def _dense(left, central, right, *, dims):
    whole = contract([*left, central, *right], len(left))
    return whole[: dims[0], : dims[1]]


def _cost(left, central, right) -> MpoCost:
    shapes = [core.shape[-4:] for core in (*left, central, *right)]
    return mpo_cost(shapes, len(left))


def _flat(x, lead: tuple[int, ...], dims, dtype) -> jax.Array:
    """x (*lead, ..., I) as (*lead, N, I), or an error that says what is wrong."""
    if x.dtype != dtype:
        raise TypeError(
            f"an MPO of {dtype} and an input of {x.dtype}: cast one to the dtype that "
            "you want to compute in"
        )
    if x.ndim <= len(lead) or x.shape[: len(lead)] != lead or x.shape[-1] != dims[0]:
        raise ValueError(
            f"an MPO of {(*lead, *dims)} and an input {x.shape}: the input is "
            f"({', '.join(map(str, (*lead, '...', dims[0])))})"
        )
    return x.reshape(*lead, math.prod(x.shape[len(lead) : -1]), dims[0])


def _chosen(mode: str, cost: MpoCost, tokens: int) -> str:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} of an MPO: {nearest(mode, MODES)}")
    if mode == "auto":
        return "rebuild" if tokens >= cost.break_even else "sequential"
    return mode


def _product(left, central, right, x, *, cost: MpoCost, dims, mode: str):
    """x (N, I) times one kernel, the way that `mode` says."""
    if _chosen(mode, cost, x.shape[0]) == "rebuild":
        return dot(_dense(left, central, right, dims=dims), x)
    cores = [*left, central, *right]
    rows = math.prod(core.shape[1] for core in cores)
    x = jnp.pad(x, ((0, 0), (0, rows - dims[0])))
    through = _rightward if cost.is_rightward else _leftward
    return through(cores, x)[:, : dims[1]]


def _rightward(cores, x):
    """h is (N, j's so far, bond, i's to come)."""
    n, rest = x.shape
    h, done = x, 1
    for core in cores:
        d, i, j, e = core.shape
        rest //= i
        h = h.reshape(n, done, d * i, rest)
        h = jnp.einsum("nakr,kc->nacr", h, core.reshape(d * i, j * e))
        done *= j
    return h.reshape(n, done)


def _leftward(cores, x):
    """h is (N, i's to come, bond, j's so far)."""
    n, rest = x.shape
    h, done = x, 1
    for core in reversed(cores):
        d, i, j, e = core.shape
        rest //= i
        h = h.reshape(n, rest, i * e, done)
        turned = core.transpose(1, 3, 0, 2).reshape(i * e, d * j)
        h = jnp.einsum("nrka,kc->nrca", h, turned)
        done *= j
    return h.reshape(n, done)
