"""Optimizers beside each other: tuned alike, then by steps and by seconds."""
