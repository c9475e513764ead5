"""MiniLM with 8 plain experts a layer, spread over 8 devices: data, experts and ZeRO.

Paper: the big-model report (arXiv 2207.11912) names the classes, and trains no model
Run: python -m experiments.finetune --config=configs/zero_moe_minilm.py
Expect: the losses of the same run on one device (tests/studies/test_mixture.py holds a
  small one to that). Of the cloud's half a device has two experts of each layer and all
  else, and a half of the optimizer's state of that. No whole run was made, so there is
  no score to expect
Cost: not measured; JAX_NUM_CPU_DEVICES=8 stands before the command on a CPU
"""

from splitjax.studies.mixture.mixture import Mixture


def get_config() -> Mixture:
    """CoLA, MRPC, RTE and SST-2 at once; the embeddings are the edge's."""
    return Mixture(
        limit=4000,
        epochs=1,
        mode="split",
        after=("embed",),
        ragged=False,
        ffn="moe",
        capacity=1.5,
        eval_capacity=4.0,
        mesh="data=2,expert=4",
        zero=1,
    )
