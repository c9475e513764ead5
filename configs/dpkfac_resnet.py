"""K-FAC against SGD and AdamW: a ResNet-20 on CIFAR-10, cut behind its first group.

Paper: DP-KFAC (arXiv 2206.15143); damping .03 is that of the authors' script for
  CIFAR-10, which trains larger ResNets for 100 epochs; the clip 1e-2 is ours
Run: python -m experiments.optimizers --config=configs/dpkfac_resnet.py
Expect: 316 steps (4 epochs of 5,000 pictures), one seed, on one CPU core (2026-11-30,
  with --clock=cpu); accuracy of 2,000 test pictures, rates chosen on 1,000 held out:
    arm    rate  accuracy  a step   ratio  steps and CPU-seconds to .4710
    sgd    .03   .4710     441 ms   1.00   316  139
    adamw  .003  .5620     447 ms   1.01   237  106
    kfac   .1    .5980     684 ms   1.52   237  162
  So K-FAC gets further with a step than AdamW, and less far in the same time. All are
  far from trained. A score is taken after each epoch, so steps are told by 79
Cost: 28 CPU-minutes of steps by these times (of 12 runs), and evaluations
"""

from splitjax.train.classify import Classify

ARMS = (
    "optimizer=sgd learning_rate=0.01,0.03,0.1",
    "optimizer=adamw learning_rate=1e-3,3e-3,1e-2",
    "optimizer=kfac learning_rate=0.03,0.1,0.3",
)


def get_config() -> Classify:
    """The options of this run; a tenth of the pictures, a fifth of them to tune on."""
    return Classify(
        task="cifar10",
        model="resnet20",
        after=("layer1",),
        limit=5_000,
        hold_out=1_000,
        eval_limit=2_000,
        batch_size=64,
        epochs=4,
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=1e-4,
        clip=0.0,
        kfac_damping=0.03,
        kfac_ema_old=0.9,
        kfac_clip=1e-2,
        kfac_factor_every=5,
        kfac_inverse_every=25,
    )
