"""Experiments that ask more than one fine-tuning run does, each with its report."""
