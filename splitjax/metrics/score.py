"""Scores of a whole data set, on the host, as the benchmarks define them."""

import numpy as np


def spearman(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where either side is constant.

    Example:
      >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0]))
      1.0
    """
    from scipy import stats

    if np.ptp(predicted) == 0 or np.ptp(wanted) == 0:
        return 0.0
    return float(stats.spearmanr(predicted, wanted).statistic)


def pearson(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Pearson's correlation; 0 where either side is constant.

    Example:
      >>> round(pearson(np.array([1.0, 2.0]), np.array([2.0, 4.0])), 6)
      1.0
    """
    if np.ptp(predicted) == 0 or np.ptp(wanted) == 0:
        return 0.0
    return float(np.corrcoef(predicted, wanted)[0, 1])


def accuracy(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """The share of rows whose largest logit is at the wanted class.

    Example:
      >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
      0.5
    """
    return float((predicted.argmax(-1) == wanted).mean())


def matthews(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Matthews' correlation of the chosen classes, as CoLA is scored.

    Example:
      >>> matthews(np.array([[0, 1], [1, 0]]), np.array([1, 0]))
      1.0
    """
    from sklearn import metrics

    return float(metrics.matthews_corrcoef(wanted, predicted.argmax(-1)))


def f1(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """The F1 score of class 1.

    Example:
      >>> f1(np.array([[0, 1], [1, 0]]), np.array([1, 0]))
      1.0
    """
    from sklearn import metrics

    return float(metrics.f1_score(wanted, predicted.argmax(-1)))
