"""MiniLM on STS-B, cut after layer 1 of 0..5, both halves learning: to compare codecs.

Paper: none: each codec's own is in its docstring
Run: python -m experiments.frontier --config=configs/codecs_stsb.py \
  --grid="forward=ragged()+quantize(4) backward=quantize(4,rounding='stochastic')"
Expect: as it stands, in float32, dev Spearman .8945, as un-split, seed 0 (2026-11-24;
  experiments.finetune with --config.compare=True); no other point is measured yet
Cost: 5 minutes a point on one CPU core
"""

from splitjax.train.finetune import Finetune


def get_config() -> Finetune:
    """The options of this run."""
    return Finetune(
        task="stsb",
        epochs=1,
        squeeze=False,
        after=("layer_1",),
        forward="ragged()",
        backward="identity()",
    )
