"""Transforms of parameters: nodes that stand where a dense leaf stood."""

from splitjax.core.factor import dot as dot
from splitjax.core.factor import factorize as factorize
from splitjax.core.factor import materialize as materialize
from splitjax.core.tree import where as where
from splitjax.factors.lora import adapt as adapt
from splitjax.factors.low_rank import low_rank as low_rank
from splitjax.factors.mpo_fit import mpo as mpo
from splitjax.factors.mpo_plan import mpo_plan as mpo_plan
from splitjax.factors.quantized import quantized_to as quantized_to
from splitjax.factors.smartdeal import smartdeal as smartdeal
