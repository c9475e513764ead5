"""Experiments: from a config to its parts, its loop and its report."""

from splitjax.train.experiment import Experiment as Experiment
from splitjax.train.experiment import option as option
