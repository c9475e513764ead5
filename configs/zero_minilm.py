"""MiniLM on STS-B, cut after its embeddings, the cloud's layers by ZeRO on 8 devices.

Paper: ZeRO (arXiv 1910.02054), of the classes that the big-model report (arXiv
  2207.11912) names; the former trains GPT-2, the latter nothing
Run: python -m experiments.finetune --config=configs/zero_minilm.py
Expect: the losses of --config.mode=unsplit --config.mesh='' --config.zero=0, but for
  rounding (tests/train/test_scaled.py holds four steps of each stage to 1e-5). Of the
  cloud's 42.6 MB of parameters and 85.2 MB of moments a device has at rest 42.6 and
  85.2 by stage 0, 42.6 and 10.6 by 1 and 2, 5.3 and 10.6 by 3 (2026-11-29); what comes
  with a step: python -m experiments.memory. No whole run was made, so there is no score
  to expect
Cost: not measured; JAX_NUM_CPU_DEVICES=8 stands before the command on a CPU
"""

from splitjax.train.finetune import Finetune


def get_config() -> Finetune:
    """Eight parts of each batch; other options of memory by --config.FIELD."""
    return Finetune(
        task="stsb",
        epochs=1,
        squeeze=False,
        after=("embed",),
        ragged=False,
        mesh="data=8",
        zero=3,
        recompute="full",
    )
