"""SmolLM2-135M, its feed-forward blocks at 90, 80 and 70 % of their numbers.

Paper: FWSVD (arXiv 2207.00112), TFWSVD (arXiv 2211.09718), neither on this model
Run: python -m experiments.compress_language --config=configs/wsvd_smollm2_wikitext.py
Expect: on the first 16,384 tokens of WikiText-2's test split (2026-11-30), with
  shares=(0.9,0.8), factors=('svd','fwsvd'): perplexity 22.73 dense; at 90 % SVD
  273,056, FWSVD 974.1; at 80 % 299,761 and 4,784. No rank of so many numbers serves
  without training on (tune), which is not measured, as element-wise weights and 70 %
  are not. With factors=('quantized',), shares=(0.3,0.15), of bytes: int8 22.76, nf4
  26.55
Cost: 8 minutes a point of one slow CPU core (36 GFLOP/s in float32), 7 for the Fisher
"""

from splitjax.studies.compress.language import CompressLanguage


def get_config() -> CompressLanguage:
    """The options of this run."""
    return CompressLanguage()
