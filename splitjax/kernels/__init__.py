"""Chains of small operations in one pass, with gradients of their own."""

from splitjax.kernels.adam import adam as adam
from splitjax.kernels.cross_entropy import cross_entropy as cross_entropy
from splitjax.kernels.cross_entropy import token_mean as token_mean
from splitjax.kernels.dropout import bias_act_dropout as bias_act_dropout
from splitjax.kernels.dropout import bias_dropout_skip as bias_dropout_skip
from splitjax.kernels.embedding import embed as embed
from splitjax.kernels.kernel import Kernel as Kernel
from splitjax.kernels.layer_norm import layer_norm as layer_norm
