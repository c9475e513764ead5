"""MiniLM on SST-2 (sentiment), cut in layer 1 of 0..5, over 96x fewer bytes.

Paper: SFT (arXiv 2211.16703); the code of the input, and sending it once, are ours
Run: python -m experiments.finetune --config=configs/sft_sst2.py
Expect: dev accuracy .8830 at 100.1x, seed 0, the edge does 23 % of the FLOPs
  (2026-11-29); un-split .8933 after one epoch at 5e-5 (--config.mode=unsplit
  --config.epochs=1): -1.03 points, just not good enough.
  184 dimensions and three epochs were .8773 at 97.7x (2026-11-24); one epoch of 80
  dimensions, 3 bits and a fitted code .8555 at 98.0x, both arms at 5e-5. All 384
  directions in one step (--config.rank=384 --config.forward_bits=32 and
  --config.forward="ragged() + bounded(0.106, block=None) + lossless()") are a finer
  code and no better: .8796 at 78.1x (2026-11-30), so the code is not what is missing
  after five epochs of a frozen edge. A frozen float32 edge could send once, too, and
  only up: the ratio to that is 10
Cost: 76 minutes a run on one slow CPU core; no code is fit
"""

from splitjax.train.finetune import Finetune, narrow


def get_config() -> Finetune:
    """The options of this run."""
    return narrow(
        task="sst2",
        epochs=5,
        rank=300,
        forward_bits=4,
        send_once=True,
        fit_steps=0,
        learning_rate=1e-4,
        unsplit_rate=5e-5,
    )
