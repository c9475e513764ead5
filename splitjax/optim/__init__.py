"""Transforms of updates, as optax has them."""

from splitjax.optim.adapt_bounds import adapt_bounds as adapt_bounds
from splitjax.optim.clip import clip_by_global_norm as clip_by_global_norm
from splitjax.optim.curvature import with_taps as with_taps
from splitjax.optim.energy import energy_project as energy_project
from splitjax.optim.flat import flat_by_dtype as flat_by_dtype
from splitjax.optim.kfac import dp_kfac as dp_kfac
from splitjax.optim.latent import clip_latent as clip_latent
from splitjax.optim.loss_scale import loss_scale as loss_scale
from splitjax.optim.lrpet import alphas as alphas
from splitjax.optim.lrpet import lrpet as lrpet
from splitjax.optim.lrpet import project_params as project_params
from splitjax.optim.mask import mask_updates as mask_updates
from splitjax.optim.mixed_precision import mixed_precision as mixed_precision
from splitjax.optim.norms import recalibrate as recalibrate
from splitjax.optim.rank_search import rank_search as rank_search
from splitjax.optim.ranks import at_rank as at_rank
from splitjax.optim.ranks import at_ratio as at_ratio
from splitjax.optim.ranks import joined as joined
from splitjax.optim.tap_use import check_taps as check_taps
