"""Options of experts in the feed-forward blocks of a model, and what they make."""

import dataclasses
from collections.abc import Sequence

import jax
import optax

from splitjax.core.keys import fold
from splitjax.core.stage import Stage, substitute
from splitjax.core.tree import Tree
from splitjax.factors.mpo_plan import MpoPlan, mpo_plan
from splitjax.models.bert_config import BertConfig
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.experts import Moe
from splitjax.models.moe import moe_ffn
from splitjax.models.upcycle import upcycle
from splitjax.optim.mask import mask_updates
from splitjax.train.cut_experiment import DTYPES, CutExperiment
from splitjax.train.experiment import check, option

FFN = ("dense", "moe", "mpoe")
Config = BertConfig | DecoderConfig


@dataclasses.dataclass
class ExpertOptions(CutExperiment):
    """A run whose feed-forward blocks may be parted among experts."""

    ffn: str = option("dense", f"the feed-forward blocks: one of {FFN}")
    experts: int = option(8, "in each block")
    router: str = option("top1_st", "'top1_st', 'top1_scale' or 'top2'")
    capacity: float = option(1.25, "places in training, in parts of an even share")
    eval_capacity: float = option(2.0, "places in evaluation, likewise")
    balance: float = option(1e-2, "weight of the load-balance loss")
    group: str = option("batch", "whose tokens share places: 'batch' or 'sequence'")
    max_bond: int = option(0, "of 'mpoe': the largest bond; 0: exact")
    mask: float = option(
        0.875, "of 'mpoe': the share of updates that shared cores leave out; 1 - 1/E"
    )

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.ffn, "ffn", FFN)
        self._moe()
        if not 0 <= self.mask <= 1:
            raise ValueError(f"mask={self.mask}: a probability, from 0 to 1")
        if self.max_bond < 0:
            raise ValueError(f"max_bond={self.max_bond}: 1 or more; 0: full bonds")

    def tx(self, steps: int, seed: int = 0) -> optax.GradientTransformation:
        """The optimizer; with shared cores, their updates are left out by chance."""
        whole = super().tx(steps, seed)
        if self.ffn != "mpoe" or not self.mask:
            return whole
        key = fold(jax.random.key(seed), "mask")
        return mask_updates(whole, r".*/central", self.mask, key=key)

    def with_experts(
        self, stages: Sequence[Stage], config: Config
    ) -> tuple[Stage, ...]:
        """A model whose feed-forward blocks are what the options say."""
        if self.ffn == "dense":
            return tuple(stages)
        more = {"plans": self._plans(config), "dtype": DTYPES[self.dtype]}
        blocks = [moe_ffn(config, n, self._moe(), **more) for n in range(config.layers)]
        return substitute(stages, *blocks)

    def upcycled(self, params: Tree, config: Config, key: jax.Array) -> Tree:
        """Its parameters from those of the dense model; each block is copied."""
        if self.ffn == "dense":
            return params
        params, plans = dict(params), self._plans(config)
        for layer in range(config.layers):
            name = f"layer_{layer}/ffn"
            more = {"key": fold(key, name), "plans": plans, "std": config.init_std}
            params[name] = upcycle(params[name], self.experts, **more)
        return params

    def _moe(self) -> Moe:
        names = [field.name for field in dataclasses.fields(Moe)]
        return Moe(**{name: getattr(self, name) for name in names})

    def _plans(self, config: Config) -> dict[str, MpoPlan] | None:
        if self.ffn != "mpoe":
            return None
        d, f, most = config.width, config.ffn, self.max_bond or None
        up, down = mpo_plan(d, f, max_bond=most), mpo_plan(f, d, max_bond=most)
        gated = {"gate": up} if config.family == "llama" else {}
        return {"wi": up, "wo": down, **gated}
