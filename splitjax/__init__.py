"""Split learning between edge and cloud in JAX."""
