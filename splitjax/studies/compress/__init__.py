"""Weights in fewer bytes: what a model scores before, after, and trained on."""
