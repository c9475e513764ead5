"""SmolLM2-135M, its feed-forward blocks at 90, 80 and 70 % of their numbers.

Paper: FWSVD (arXiv 2207.00112), TFWSVD (arXiv 2211.09718), neither on this model
Run: python -m experiments.compress_language --config=configs/wsvd_smollm2_wikitext.py
Expect: on the first 1,024 tokens (2026-11-24, no seed) of WikiText-2's test split, with
  tokens=1024, fisher_windows=8, shares=(0.9,), factors=('svd','fwsvd'): perplexity
  13.82 dense, SVD 415,877, FWSVD 341.6. Element-wise, other sizes, the 16,384
  tokens and training on (tune) are not measured yet
Cost: those two points 8 minutes of one CPU core that others used too, 2 for the Fisher;
  by their speed 16,384 tokens would take 2 minutes more a point
"""

from splitjax.studies.compress.language import CompressLanguage


def get_config() -> CompressLanguage:
    """The options of this run."""
    return CompressLanguage()
