"""Experts that share their cores, on a mixture of tasks."""
