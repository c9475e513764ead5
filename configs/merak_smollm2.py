"""SmolLM2-135M, 30 layers between an embedding and a head of 49,152 words, in 4 stages.

Paper: Merak (arXiv 2206.04959); its models are of 1.5B to 20B on 64 GPUs
Run: python -m experiments.plan --config=configs/merak_smollm2.py
Expect: on one core (2026-11-29): stages
  of 15, 20, 21 and 7 blocks, foretold 209, 216, 222 and 230 ms, measured 198, 263, 287
  and 363; the head's stage is underrated. By these times a step of 1f1b takes 2.20 s,
  with equal numbers of blocks 2.41 s (foretold 1.57 and 1.83). Cores that stages share
  cannot show it: the whole step, one core for all, takes 4.94 s and 4.52 s
Cost: about 90 s of one CPU core
"""

from splitjax.studies.plan.options import Planning


def get_config() -> Planning:
    """The options of this run."""
    return Planning(micro=4, tokens=64, rounds=1, clock="cpu")
