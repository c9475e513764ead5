"""Training protocols: each is one `Algorithm`."""

from splitjax.algorithms.split import split_learning as split_learning
