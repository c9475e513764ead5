"""Low rank: a kernel as a product of three thin ones, from its singular values."""

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.factor import Factor, dot, materialize, register_factor
from splitjax.core.tree import Tree
from splitjax.factors.product import matrix


@register_factor
class LowRank(Factor):
    """A kernel `(I, J)` as `v (I, R) @ s (R, R) @ u (R, J)`; leading axes are a batch.

    All three are ordinary trainable leaves: s does not stay diagonal, u and v do not
    stay orthogonal.

    Example:
      >>> import jax.numpy as jnp
      >>> factor = fit(jnp.diag(jnp.array([3.0, 2.0, 1.0])), 2)
      >>> factor.v.shape, factor.s.shape, factor.u.shape
      ((3, 2), (2, 2), (2, 3))
    """

    v: jax.Array
    s: jax.Array
    u: jax.Array

    def materialize(self) -> jax.Array:
        """The dense kernel `(..., I, J)`."""
        return self.v @ self.s @ self.u

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (..., I)` times the kernel, through its R dimensions."""
        return dot(self.u, dot(self.s, dot(self.v, x)))


def fit(kernel: jax.Array, rank: int) -> LowRank:
    """The best approximation of a rank, by the singular value decomposition.

    With `kernel = V diag(s) U`, the first R of each: no other product of that rank is
    nearer in the Frobenius norm (Eckart and Young), and the square of the distance is
    the sum of the squares of the singular values left out.

    It runs on the host in float64, once; what it made is sent. Two parties that each
    decompose the same kernel may disagree about signs.

    Args:
      kernel: (..., I, J), floating; a factor counts as the dense leaf it stands for.
      rank: from 1 to min(I, J).

    Returns:
      Factors of the kernel's dtype.

    Raises:
      ValueError: for a rank outside the range, a kernel of integers, with NaN or
        infinity, or of zeros only, whose factors could not be trained.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.arange(6.0).reshape(3, 2)
      >>> bool(jnp.allclose(fit(w, 2).materialize(), w, atol=1e-5))
      True

    Reference:
      Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    kernel = materialize(kernel)
    dense = matrix(kernel, rank)
    left, values, right = np.linalg.svd(dense, full_matrices=False)
    middle = values[..., :rank, None] * np.eye(rank)
    parts = left[..., :rank], middle, right[..., :rank, :]
    return LowRank(*(jnp.asarray(part, kernel.dtype) for part in parts))


def low_rank(rank: int):
    """`fit` of one rank, as `factorize` takes it.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.core.factor import factorize
      >>> from splitjax.core.tree import where
      >>> params = {"wi": {"kernel": jnp.ones((4, 6)), "bias": jnp.zeros(6)}}
      >>> factorize(low_rank(1), params, where(".*/kernel"))["wi"]["kernel"].u.shape
      (1, 6)
    """
    return lambda kernel: fit(kernel, rank)


def energy(kernel: jax.Array, rank: int) -> float:
    """The share of the squared singular values that a rank keeps, from 0 to 1.

    Example:
      >>> import jax.numpy as jnp
      >>> energy(jnp.diag(jnp.array([3.0, 1.0])), 1)
      0.9
    """
    dense = np.asarray(kernel.astype(jnp.float32), np.float64)
    squares = np.square(np.linalg.svd(dense, compute_uv=False))
    return float(squares[..., :rank].sum() / squares.sum())


def squeeze_params(
    ffn: Tree,
    rank: int,
    *,
    skip: str | int | None = None,
    mode: str = "svd",
    mean: np.ndarray | None = None,
    basis: np.ndarray | None = None,
) -> tuple[Tree, Tree]:
    """Parts a dense feed-forward block's parameters for a cut inside of it.

    Made once, on one side, from the pretrained block; see `models.squeeze` for the
    stages that take them.

    Args:
      ffn: `{"wi": {"kernel" (D, F), "bias"}, "wo": ..., "norm": ...}`.
      rank: R, the width of the code.
      skip: None, "keep", or the width r' of a low-rank skip.
      mode: "svd", or "pca" (a code of the block's input).
      mean: (D,) of real activations; where a skip is a number, and for "pca".
      basis: (D, r') or (D, R) of their principal directions, alike.

    Returns:
      The parameters of the edge's stage and of the cloud's.

    Raises:
      ValueError: for a rank outside the range, or a basis of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> ffn = {"wi": {"kernel": jnp.eye(4, 6), "bias": jnp.zeros(6)},
      ...     "wo": {"kernel": jnp.eye(6, 4), "bias": jnp.zeros(4)}, "norm": {}}
      >>> squeeze, expand = squeeze_params(ffn, 2)
      >>> squeeze["v"]["kernel"].shape, expand["u"]["kernel"].shape
      ((4, 2), (2, 6))

    Reference:
      SFT, "Split fine-tuning" of language models, 2022, arXiv 2211.16703, after the
      authors' published code.
    Differs:
      The low-rank skip and mode "pca" are additions of ours.
    """
    kernel = ffn["wi"]["kernel"]
    width = rank if mode == "pca" else skip
    project, rebuild = {}, {}
    if isinstance(width, int):
        if basis is None or mean is None or basis.shape != (kernel.shape[0], width):
            found = None if basis is None else basis.shape
            raise ValueError(
                f"a code of {width} principal directions needs a mean and a basis "
                f"({kernel.shape[0]}, {width}); the basis given is {found}"
            )
        center = jnp.asarray(mean, kernel.dtype)
        project = {"kernel": jnp.asarray(basis, kernel.dtype), "mean": center}
        rebuild = {"kernel": project["kernel"].T, "bias": center}
    rest = {"wo": ffn["wo"], "norm": ffn["norm"]}
    if mode == "pca":
        return {"code": project}, {"decode": rebuild, "wi": ffn["wi"], **rest}
    factor = fit(kernel, rank)
    squeeze: dict = {"v": {"kernel": factor.v}, "s": {"kernel": factor.s}}
    expand: dict = {"u": {"kernel": factor.u, "bias": ffn["wi"]["bias"]}, **rest}
    if project:
        squeeze["skip"], expand["skip_out"] = project, rebuild
    return squeeze, expand


def merge(squeeze: Tree, expand: Tree) -> Tree:
    """The dense block of a squeezed one: `wi = v s u`.

    It is the same function only with the skip that the cut had: kept whole, it is the
    ordinary block; removed, it is the block of a config whose `skipless` names the
    layer.

    Args:
      squeeze: the parameters of the edge's stage.
      expand: those of the cloud's.

    Returns:
      `{"wi", "wo", "norm"}`.

    Raises:
      ValueError: for a low-rank skip, or mode "pca": no dense block computes them.

    Example:
      >>> import jax.numpy as jnp
      >>> ffn = {"wi": {"kernel": jnp.eye(4, 6), "bias": jnp.zeros(6)},
      ...     "wo": {"kernel": jnp.eye(6, 4), "bias": jnp.zeros(4)}, "norm": {}}
      >>> merge(*squeeze_params(ffn, 4))["wi"]["kernel"].shape
      (4, 6)
    """
    if "code" in squeeze or "skip" in squeeze:
        raise ValueError(
            "a block with a low-rank skip, or a code of its input, has no dense block "
            "of the original's shape: save the squeezed parameters as a checkpoint"
        )
    factor = LowRank(
        squeeze["v"]["kernel"], squeeze["s"]["kernel"], expand["u"]["kernel"]
    )
    wi = {"kernel": factor.materialize(), "bias": expand["u"]["bias"]}
    return {"wi": wi, "wo": expand["wo"], "norm": expand["norm"]}
