"""The border to module systems: Linen and NNX modules become stages."""
