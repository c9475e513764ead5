"""MiniLM on STS-B, cut after its third layer, its layers on fused kernels.

Paper: LightSeq2 (arXiv 2110.05722): its kernels' formulas; it trains no split model
Run: python -m experiments.finetune --config=configs/lightseq_minilm.py
Expect: the losses of --config.fused='' (the stock layers), but for what dropout drops,
  and within 1e-4 without it (tests/systems/test_lightseq.py holds a block of layers to
  that over 50 steps). No whole run was made yet, so there is no score to expect. A
  layer keeps 0.63 of the bytes for its backward pass, its program accesses 0.86 of
  them, and it takes the same time on one CPU core (1.00, 2026-11-29):
  python -m experiments.bench_cloud --only=kernels --clock=cpu
Cost: not measured
"""

from splitjax.train.finetune import Finetune


def get_config() -> Finetune:
    """The options of this run."""
    return Finetune(
        task="stsb", epochs=1, squeeze=False, after=("layer_2",), fused="xla"
    )
