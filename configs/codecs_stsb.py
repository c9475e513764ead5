"""MiniLM on STS-B, cut after layer 1 of 0..5, both halves learning: to compare codecs.

Paper: none: each codec's own is in its docstring
Run: python -m experiments.frontier --config=configs/codecs_stsb.py
Expect: as it stands, in float32, dev Spearman .8945, as un-split, seed 0 (2026-11-24;
  experiments.finetune with --config.compare=True). 2026-11-29, seed 0, with
  --config.attack="('inversion',)": 2 bits up, 4 back .8787 at 10.5x; the largest 10 %,
  5 % back, 4 bits .8768 at 38.6x; binary, 8 bits back .8154 at 7.0x; c3(4) with 8 bits
  .5821 at 15.8x. An attack names 64, 50, 55 and 37 % of the tokens, 7 by chance. The
  other points are not measured
Cost: 5 minutes a point of one epoch on one CPU core, 15 of three, 28 for the last
"""

from splitjax.train.finetune import Finetune

GRID = (
    # One codec each way; both halves learn.
    "forward=ragged()",
    "forward=ragged()+cast('bf16') backward=cast('bf16')",
    "forward=ragged()+quantize(8) backward=quantize(8,rounding='stochastic')",
    "forward=ragged()+quantize(4,axis='channel')"
    " backward=quantize(4,axis='channel',rounding='stochastic')",
    "forward=ragged()+quantize(2,axis='channel')"
    " backward=quantize(4,axis='channel',rounding='stochastic')",
    "forward=ragged()+binary() backward=quantize(8,rounding='stochastic')",
    "forward=ragged()+binary(center=True) backward=scaled_sign()",
    "forward=ragged()+top_k(0.1) backward=top_k(0.1)",
    "forward=ragged()+random_k(0.1) backward=random_k(0.1,unbiased=True)",
    "forward=ragged()+projection(48) backward=projection(48)",
    "forward=ragged()+c3(4),ragged()+c3(4,keys='unitary',center=True)",
    "forward=ragged()+bounded(0.01,relative=True,block=None)+lossless()"
    " backward=bounded(0.01,relative=True,block=None)+lossless()",
    # Chains.
    "forward=ragged()+quantize(2,axis='channel')+lossless()"
    " backward=quantize(2,axis='channel',rounding='stochastic')+lossless()",
    "forward=ragged()+top_k(0.1)+quantize(4) backward=top_k(0.05)+quantize(4)",
    "forward=ragged()+projection(48)+quantize(4,axis='channel')"
    " backward=projection(24)+quantize(4,axis='channel',rounding='stochastic')",
    "forward=ragged()+c3(4,keys='unitary')+quantize(8)"
    " backward=quantize(8,rounding='stochastic')",
    "forward=ragged()+uniform(1.0,relative=True)+lossless('columns')"
    " backward=uniform(2.0,relative=True,rounding='stochastic')+lossless('columns')",
    # What is new about each example, beside float32 for as long.
    "forward=ragged() edge_dropout=False epochs=3",
    "forward=ragged()+delta(quantize(2,axis='channel',power_of_two=True),first='half')"
    " backward=quantize(4,axis='channel',rounding='stochastic')"
    " edge_dropout=False epochs=3",
    # A frozen edge whose narrow codes are sent once (configs/sft_stsb_once.py).
    "after= layer=2 bridge=pca rank=80 forward= backward= forward_bits=3"
    " frozen_edge=True fit_steps=1200 fit_rate=0.001 send_once=True epochs=5"
    " squeeze=True",
)


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
