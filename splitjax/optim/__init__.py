"""Transforms of updates, as optax has them."""

from splitjax.optim.adapt_bounds import adapt_bounds as adapt_bounds
from splitjax.optim.clip import clip_by_global_norm as clip_by_global_norm
from splitjax.optim.latent import clip_latent as clip_latent
