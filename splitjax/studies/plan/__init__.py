"""A model in stages: predicted, and measured."""
