"""MiniLM on STS-B, its matrices as sparse powers of two times small bases.

Paper: SmartDeal (arXiv 2101.01163) and SmartExchange (arXiv 2005.03403), not on this
  model; their tables could not be checked. What is counted are packed bytes, no joules
Run: python -m experiments.compress --config=configs/smartdeal_minilm.py
Expect: not measured yet.
  The chain "low rank, LRPET, SmartDeal on top" is one command of the other config:
  python -m experiments.compress --config=configs/wsvd_minilm_stsb.py \
    --config.factors="('fwsvd',)" --config.tune=lrpet --config.codes=0.5
Cost: not measured; 3 minutes of one CPU core to train the model, and the fit
"""

from splitjax.studies.compress.options import Compress


def get_config() -> Compress:
    """The shares are of the codes: 1.0 only rounds them to powers of two."""
    return Compress(
        task="stsb", epochs=1, factors=("smartdeal",), shares=(1.0, 0.5, 0.2)
    )
