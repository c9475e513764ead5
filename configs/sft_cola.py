"""MiniLM on CoLA (acceptability), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_cola.py
Expect: dev Matthews after the last epoch (2026-11-24), 99.7x, the edge does 23 % of the
  FLOPs; un-split, at 5e-5, with --config.compare=True
  and --config.seeds="(0,1,2,3,4)":
    seed 0 .3277, un-split .3395; 1 .3027, .3017; 2 .3230, .3119; 3 .2904, .3282;
    4 .3123, .3090: -0.68 ± .86 points
  Rates were chosen on seed 0 from 5e-5 and 1e-4, 3 epochs: un-split .335 and .260,
  frozen float32 edge .274 and .287. Five epochs pay for 300 dimensions of 4 bits; with
  three, 168 dimensions (.221) lost 7 points to that float32 edge. A frozen float32
  edge could send once, too, and only up: the ratio to that is 10. Both arms read the
  same batches in every epoch, as sending once asks for
Cost: 5 minutes a run on one CPU core, 7 un-split; no code is fit
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="cola",
        epochs=5,
        rank=300,
        forward_bits=4,
        send_once=True,
        fit_steps=0,
        learning_rate=1e-4,
        unsplit_rate=5e-5,
    )
