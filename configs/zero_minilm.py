"""MiniLM on STS-B, cut after its embeddings, the cloud's layers by ZeRO on 8 devices.

Paper: ZeRO (arXiv 1910.02054), of the classes that the big-model report (arXiv
  2207.11912) names; the former trains GPT-2, the latter nothing
Run: python -m experiments.finetune --config=configs/zero_minilm.py
Expect: the losses of --config.mode=unsplit --config.mesh='' --config.zero=0, but for
  rounding (tests/train/test_scaled.py holds four steps of each stage to 1e-5). Before a
  step a device has 128.2 MB by stage 0, 53.6 by 1 and 2, 16.4 by 3, predicted and
  compiled to the byte; with it come 91.5, 91.5, 90.8 and 124.5 as compiled for a CPU,
  where 85.2, 85.2, 82.9 and 120.1 are predicted: .91 to .97. In stage 3 the gathered
  parameters stay from the way there to the way back. Recomputation leaves an edge .01
  MB to keep for 13.4, and saves a CPU's cloud nothing (91.9, 91.9, 90.8, 129.4,
  predicted .95 to .96 of that), whose layers are no loop: python -m experiments.memory
  (2026-11-29). No whole run was made, so there is no score to expect
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
