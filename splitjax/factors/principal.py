"""Principal directions of activations: the start of a narrow code."""

import numpy as np


def principal(rows: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and principal directions of rows, in float64 on the host.

    Args:
      rows: (N, D).
      rank: from 1 to D.

    Returns:
      The mean (D,), an orthonormal basis (D, R), and the share of the variance kept.

    Raises:
      ValueError: for a rank outside the range, or rows that are not finite.

    Example:
      >>> import numpy as np
      >>> rows = np.array([[1.0, 0.1], [-1.0, 0.1], [3.0, 0.1], [-3.0, 0.1]])
      >>> mean, basis, kept = principal(rows, 1)
      >>> mean.round(3).tolist(), abs(basis[:, 0]).round(3).tolist(), kept
      ([0.0, 0.1], [1.0, 0.0], 1.0)
    """
    rows = np.asarray(rows, np.float64)
    if not 1 <= rank <= rows.shape[-1]:
        raise ValueError(f"rank {rank}: it must be from 1 to {rows.shape[-1]}")
    if not np.isfinite(rows).all():
        raise ValueError("the activations hold NaN or infinity")
    mean = rows.mean(0)
    scatter = (rows - mean).T @ (rows - mean) / len(rows)
    values, vectors = np.linalg.eigh(scatter)
    basis = vectors[:, ::-1][:, :rank]
    kept = values[::-1][:rank].sum() / values.sum()
    return mean, basis, float(kept)
