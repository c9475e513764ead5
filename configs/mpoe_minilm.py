"""MiniLM's feed-forward blocks as 8 experts that share their central cores, four tasks.

Paper: MPOE (arXiv 2203.01104); its tables are of T5 and GPT-2 and could not be checked
Run: python -m experiments.mixture --config=configs/mpoe_minilm.py
Expect: not measured yet. Parameters: 22.57M with dense blocks, 72.21M with 8 plain
  experts, 27.13M with 8 that share. Before training the three are one function, but for
  tokens that find no place
  (--config.steps=1 --config.limit=64 prints them, too)
Cost: no whole run was made yet; what is rebuilt in a step costs the same for texts of
  any length
"""

from splitjax.studies.mixture.mixture import Mixture


def get_config() -> Mixture:
    """CoLA, MRPC, RTE and SST-2 at once, at most 4,000 training examples of each.

    A new router is uneven: with places for twice an even share the evaluation dropped
    enough tokens to move the score by a point.
    """
    return Mixture(limit=4000, epochs=2, capacity=1.5, eval_capacity=4.0)
