"""MiniLM's feed-forward blocks as 8 experts that share their central cores, four tasks.

Paper: MPOE (arXiv 2203.01104); its tables are of T5 and GPT-2 and could not be checked
Run: python -m experiments.mixture --config=configs/mpoe_minilm.py
Expect: not measured yet. Before training the three are one function: the same logits
  to 7 digits (2026-11-24). Parameters 22.57M dense, 27.13M here
Cost: no whole run was made yet. A step of 32 texts of 8 tokens took 1.65 s on one CPU
  core, 0.20 s with dense blocks: what is rebuilt costs the same for longer texts
"""

from splitjax.train.mixture import Mixture


def get_config() -> Mixture:
    """CoLA, MRPC, RTE and SST-2 at once, at most 4,000 training examples of each."""
    return Mixture(limit=4000, epochs=2)
