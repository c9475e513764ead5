"""Label leakage: what the gradients on the link tell of the labels behind it."""

import numpy as np


def leak_auc(score: np.ndarray, positive: np.ndarray, *, signed: bool = True) -> float:
    """The area under the ROC curve of a score for "is positive": 0.5 tells nothing.

    It is the chance that a positive example scores above another one, ties half.

    Args:
      score: (N,) float.
      positive: (N,) bool.
      signed: False where the attacker may turn the score around: then at least 0.5.

    Raises:
      ValueError: when all examples are of one kind, or a score is not finite.

    Example:
      >>> leak_auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
      1.0

    Reference:
      O. Li et al., "Label Leakage and Protection in Two-party Split Learning", 2021,
      arXiv:2102.08504 (leak AUC).
    """
    from scipy.stats import rankdata

    score, positive = np.asarray(score, np.float64), np.asarray(positive, bool)
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not (ones and zeros):
        raise ValueError(
            f"leak_auc: {ones} positive and {zeros} other examples; it needs both"
        )
    if not np.isfinite(score).all():
        raise ValueError("leak_auc: a score is not finite")
    ranks = rankdata(score)
    area = (ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)
    return float(area if signed else max(area, 1 - area))


def norm_attack(g: np.ndarray) -> np.ndarray:
    """The norm of each example's gradient, as a score: rare labels have larger ones.

    Args:
      g: (N, ...) gradients as decoded, one row for an example.

    Returns:
      (N,) float64.

    Example:
      >>> norm_attack(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [5.0, 0.0]

    Reference:
      O. Li et al., 2021, arXiv:2102.08504: the norm attack.
    """
    return np.linalg.norm(_rows(g), axis=1)


def direction_attack(g: np.ndarray, hint: np.ndarray) -> np.ndarray:
    """The cosine of each gradient with one whose label is known, as a score.

    Args:
      g: (N, ...) gradients as decoded.
      hint: (...) the gradient of one example that is known to be positive.

    Returns:
      (N,) float64 in [-1, 1]; 0 where a gradient is zero.

    Example:
      >>> direction_attack(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([1.0, 0.0]))
      array([1., 0.])

    Reference:
      O. Li et al., 2021, arXiv:2102.08504: the direction attack, with one positive
      example's gradient as the authors' code has it.
    """
    rows, hint = _rows(g), _rows(np.asarray(hint)[None])[0]
    size = np.linalg.norm(rows, axis=1) * np.linalg.norm(hint)
    return rows @ hint / np.where(size > 0, size, 1.0)


def spectral_attack(z: np.ndarray) -> np.ndarray:
    """The place of each row along the first singular vector of all, as a score.

    It needs no hint; which end is which label is open, so take `signed=False`. Rows may
    be gradients or messages.

    Args:
      z: (N, ...) rows as decoded.

    Returns:
      (N,) float64.

    Example:
      >>> z = np.array([[0.0, 1.0], [0.1, 1.0], [5.0, 1.0]])
      >>> leak_auc(spectral_attack(z), np.array([False, False, True]), signed=False)
      1.0

    Reference:
      J. Sun et al., "Label Leakage and Protection from Forward Embedding in Vertical
      Federated Learning", 2022, arXiv:2203.01451.
    """
    rows = _rows(z)
    rows = rows - rows.mean(0)
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    return rows @ right[0]


def label_leakage(
    g: np.ndarray, labels: np.ndarray, *, seed: int = 0
) -> dict[str, float]:
    """All attacks on the gradients of a labeled set, a mean over the classes.

    Each class in turn is the positive one. Its hint is one random example, which is
    left out of every score. `label_accuracy` is that of naming the class whose hint is
    the nearest in angle; `label_chance` that of always naming the commonest.

    Args:
      g: (N, ...) gradients as decoded, one row for an example.
      labels: (N,) integer classes, each with 2 examples or more.
      seed: of the hints.

    Example:
      >>> g = np.array([[-1.0, 1], [-2, 2], [-1, 1], [9, -9], [8, -8], [9, -9]])
      >>> found = label_leakage(g, np.array([0, 0, 0, 1, 1, 1]))
      >>> found["label_direction_auc"], found["label_accuracy"]
      (1.0, 1.0)

    Reference:
      O. Li et al., 2021, arXiv:2102.08504.

    Differs:
      The paper has two classes, the rarer positive, and takes a quantile over batches;
      here the mean over classes of one AUC for all examples.
    """
    rows, labels = _rows(g), np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise ValueError(
            f"label_leakage needs 2 classes of 2 examples or more; there are "
            f"{dict(zip(classes.tolist(), counts.tolist(), strict=True))}"
        )
    random = np.random.default_rng(seed)
    hints = [int(random.choice(np.flatnonzero(labels == c))) for c in classes]
    rest = np.setdiff1d(np.arange(len(labels)), hints)
    norms = norm_attack(rows[rest])
    cosines = np.stack([direction_attack(rows[rest], rows[h]) for h in hints], 1)
    one, other = [], []
    for column, c in enumerate(classes):
        positive = labels[rest] == c
        one.append(leak_auc(norms, positive, signed=False))
        other.append(leak_auc(cosines[:, column], positive))
    named = classes[cosines.argmax(1)]
    return {
        "label_norm_auc": float(np.mean(one)),
        "label_direction_auc": float(np.mean(other)),
        "label_accuracy": float(np.mean(named == labels[rest])),
        "label_chance": float(counts.max() / counts.sum()),
    }


def _rows(g: np.ndarray) -> np.ndarray:
    g = np.asarray(g, np.float64)
    return g.reshape(len(g), -1)
