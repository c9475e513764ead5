"""MiniLM on STS-B, its matrices at 70, 50 and 30 % of their numbers.

Paper: FWSVD (arXiv 2207.00112), TFWSVD (arXiv 2211.09718), neither on this model
Run: python -m experiments.compress --config=configs/wsvd_minilm_stsb.py
Expect: seed 0 (2026-11-24, iterations=3, fisher_examples=128), dev Spearman of .8945:
    70 %  SVD .8514  FWSVD .8700  element-wise .8763, 70 % of the FLOPs
    50 %  SVD .8165  FWSVD .8478  element-wise .8615, 51 % of the FLOPs
    30 %  SVD .7338  FWSVD .8025  element-wise .8174, 31 % of the FLOPs
  (of the matrices' numbers; with the embeddings, which stay, 19.4M, 17.2M and 15.1M
  of 22.6M.)
  The defaults' more iterations, and training on (tune), are not measured yet
Cost: at 50 % 100 s of one CPU core for the three, beside 3 minutes to train the model
"""

from splitjax.studies.compress.options import Compress


def get_config() -> Compress:
    """The options of this run."""
    return Compress(task="stsb", epochs=1)
