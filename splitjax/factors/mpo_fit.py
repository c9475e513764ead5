"""The cores of a kernel, by decompositions from both ends towards the middle."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.factor import materialize
from splitjax.core.keys import fold
from splitjax.core.precision import widened
from splitjax.core.tree import is_float, nearest
from splitjax.factors.mpo import Mpo, MpoExperts
from splitjax.factors.mpo_plan import MpoPlan

METHODS = ("svd", "qr")


def decompose(
    matrix: np.ndarray, plan: MpoPlan, *, method: str = "svd"
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The cores of one matrix, the central one being the center of orthogonality.

    The left cores are made from the left end, each the leading left singular vectors
    of what the ones before it left over; the right cores from the right end, likewise;
    the central core is what remains. All others have orthonormal columns (left) or rows
    (right), so the norm of the central core is that of the result, and the squared
    error is the sum of the squared singular values that were left out at the bonds.
    It is at most the sum over the bonds, and at least the largest, of what the best
    approximation of that one unfolding of the matrix leaves out.

    It runs on the host in float64.

    Args:
      matrix: (I, J).
      plan: of a matrix (I, J).
      method: "svd", or "qr", which is quicker and cannot truncate.

    Returns:
      The cores, and the discarded energy (n-1,) at each inner bond.

    Raises:
      ValueError: for another shape than the plan's, NaN or infinity, or "qr" with bonds
        that truncate.

    Example:
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> cores, discarded = decompose(np.eye(4), mpo_plan(4, 4, 2, max_bond=1))
      >>> [core.shape for core in cores], float(discarded.sum().round(6))
      ([(1, 2, 2, 1), (1, 2, 2, 1)], 0.0)

    Reference:
      Oseledets, Tensor-train decomposition, 2011, SIAM J. Sci. Comput. 33(5), algorithm
      1; Gao et al., 2022, arXiv 2203.01104, for the shapes.
    Differs:
      Two sweeps that meet at the central core, instead of one to the right. The code
      of the latter paper splits singular values over both sides of a bond, which gives
      NaN for a matrix of zeros, and truncates all bonds at once.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: {nearest(method, METHODS)}")
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != plan.dims:
        raise ValueError(
            f"a matrix {matrix.shape} and a plan for {plan.dims}: make the plan with "
            "mpo_plan(*matrix.shape)"
        )
    if not np.isfinite(matrix).all():
        raise ValueError("the kernel holds NaN or infinity: it has no decomposition")
    fill = [(0, p - s) for p, s in zip(plan.padded, plan.dims, strict=True)]
    tensor = np.pad(matrix, fill).reshape(*plan.in_factors, *plan.out_factors)
    n = len(plan.in_factors)
    order = [axis for k in range(n) for axis in (k, n + k)]
    rest = np.ascontiguousarray(tensor.transpose(order)).reshape(1, -1)
    cores: list[np.ndarray] = [rest] * n
    discarded = np.zeros(n - 1)
    for k in range(plan.central):
        d, i, j, e = plan.shapes[k]
        own, rest, discarded[k] = _parted(rest.reshape(d * i * j, -1), e, method)
        cores[k] = own.reshape(d, i, j, e)
    for k in range(n - 1, plan.central, -1):
        d, i, j, e = plan.shapes[k]
        # A split of the transpose: its left part is the core turned.
        turned = rest.reshape(-1, i * j * e).T
        own, left, discarded[k - 1] = _parted(turned, d, method)
        cores[k], rest = own.T.reshape(d, i, j, e), left.T
    cores[plan.central] = rest.reshape(plan.shapes[plan.central])
    return tuple(cores), discarded


def _parted(
    matrix: np.ndarray, bond: int, method: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Orthonormal columns (rows, bond), what they leave (bond, columns), the error."""
    if method == "qr":
        own, rest = np.linalg.qr(matrix)
        if own.shape[1] != bond:
            raise ValueError(
                f"a bond of {bond}, and the full one is {own.shape[1]}: 'qr' cannot "
                "truncate; take method='svd'"
            )
        return own, rest, 0.0
    own, values, rest = np.linalg.svd(matrix, full_matrices=False)
    kept = values[:bond, None] * rest[:bond]
    return own[:, :bond], kept, float(np.square(values[bond:]).sum())


def fit(kernel: jax.Array, plan: MpoPlan, *, method: str = "svd") -> Mpo:
    """A kernel as an `Mpo`, by `decompose`; exact where the plan's bonds are full.

    Args:
      kernel: (..., I, J), floating; a factor counts as the dense leaf it stands for.
      plan: of a matrix (I, J).
      method: see `decompose`.

    Returns:
      Cores of the kernel's dtype.

    Raises:
      ValueError: for integers or fewer than two axes, and see `decompose`.

    Example:
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> w = jnp.arange(24.0).reshape(6, 4)
      >>> bool(jnp.allclose(fit(w, mpo_plan(6, 4, 3)).materialize(), w, atol=1e-5))
      True
    """
    kernel = materialize(kernel)
    if not is_float(kernel) or kernel.ndim < 2:
        raise ValueError(
            f"an MPO needs a matrix of floats; this leaf is {kernel.shape} "
            f"{kernel.dtype}"
        )
    lead = kernel.shape[:-2]
    rows = np.asarray(widened(kernel), np.float64).reshape(-1, *kernel.shape[-2:])
    made = [decompose(row, plan, method=method)[0] for row in rows]
    if not made:
        raise ValueError(f"the kernel {kernel.shape} is empty")
    cores = [
        jnp.asarray(np.stack(core).reshape(*lead, *core[0].shape), kernel.dtype)
        for core in zip(*made, strict=True)
    ]
    c = plan.central
    return Mpo(tuple(cores[:c]), cores[c], tuple(cores[c + 1 :]), plan.dims)


def mpo(plan: MpoPlan, *, method: str = "svd") -> Callable[..., Mpo]:
    """`fit` with one plan, as `factorize` takes it.

    Example:
      >>> from splitjax.core.factor import factorize
      >>> from splitjax.core.tree import where
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> params = {"wi": {"kernel": jnp.ones((6, 4)), "bias": jnp.zeros(4)}}
      >>> new = factorize(mpo(mpo_plan(6, 4, 3)), params, where(".*/kernel"))
      >>> new["wi"]["kernel"].central.shape
      (4, 3, 2, 1)
    """
    return lambda kernel: fit(kernel, plan, method=method)


def share(factor: Mpo, experts: int) -> MpoExperts:
    """E experts that begin as copies of one kernel and share its central core.

    Args:
      factor: of one kernel, without leading axes.
      experts: E, from 1 on.

    Raises:
      ValueError: for another number, a batch of kernels, or a plan of one core, of
        which nothing would be an expert's own.

    Example:
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> experts = share(fit(jnp.ones((6, 4)), mpo_plan(6, 4, 3)), 8)
      >>> experts.left[0].shape, experts.central.shape
      ((8, 1, 2, 2, 4), (4, 3, 2, 1))

    Reference:
      Gao et al., 2022, arXiv 2203.01104, after the authors' published code.
    Differs:
      The central core holds the norm of the kernel, and the experts' own cores are
      orthonormal. One path of the code takes the shared core from a random expert,
      which loses the pretrained kernel; ours is that of the kernel.
    """
    if experts < 1:
        raise ValueError(f"experts={experts}: 1 or more")
    if factor.central.ndim != 4:
        raise ValueError(
            f"share takes one kernel; this factor has the leading axes "
            f"{factor.central.shape[:-4]}"
        )
    if not (factor.left or factor.right):
        raise ValueError("a plan of one core leaves nothing for an expert to own")

    def copies(cores):
        return tuple(jnp.stack([core] * experts) for core in cores)

    return MpoExperts(
        copies(factor.left),
        factor.central,
        copies(factor.right),
        factor.dims,
        factor.mode,
    )


def fresh_experts(
    key: jax.Array, plan: MpoPlan, experts: int, *, std: float = 0.02
) -> MpoExperts:
    """E unlike experts from random numbers, float32: a start without a checkpoint.

    The central core is normal, the other cores random orthonormal frames, so that the
    entries of every kernel have the standard deviation `std`.

    Args:
      key: of the random numbers.
      plan: of one kernel, of two cores or more.
      experts: E.
      std: of a kernel's entries.

    Example:
      >>> from splitjax.factors.mpo_plan import mpo_plan
      >>> made = fresh_experts(jax.random.key(0), mpo_plan(24, 16, 3), 2, std=1.0)
      >>> abs(float(made.materialize().std()) - 1) < 0.1
      True
    """
    if len(plan.shapes) < 2:
        raise ValueError("a plan of one core leaves nothing for an expert to own")
    orthogonal = jax.nn.initializers.orthogonal()

    def frames(k):
        d, i, j, e = plan.shapes[k]
        matrix = (d * i * j, e) if k < plan.central else (d, i * j * e)
        keys = jax.random.split(fold(key, k), experts)
        flat = jax.vmap(lambda one: orthogonal(one, matrix, jnp.float32))(keys)
        return flat.reshape(experts, d, i, j, e)

    shape = plan.shapes[plan.central]
    scale = std * (np.prod(plan.padded) / np.prod(shape)) ** 0.5
    central = jax.random.normal(fold(key, "central"), shape) * jnp.float32(scale)
    left = tuple(frames(k) for k in range(plan.central))
    right = tuple(frames(k) for k in range(plan.central + 1, len(plan.shapes)))
    return MpoExperts(left, central, right, plan.dims)
