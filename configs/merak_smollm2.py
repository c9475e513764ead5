"""SmolLM2-135M, 30 blocks between an embedding and a head of 49,152 words, in 4 stages.

Paper: Merak (arXiv 2206.04959); its models are of 1.5B to 20B on 64 GPUs
Run: python -m experiments.plan --config=configs/merak_smollm2.py
Expect: not measured yet
Cost: not measured yet
"""

from splitjax.train.plan_options import Planning


def get_config() -> Planning:
    """The options of this run."""
    return Planning()
