"""Transforms of parameters: nodes that stand where a dense leaf stood."""
