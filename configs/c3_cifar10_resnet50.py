"""A pretrained ResNet-50 on CIFAR-10, cut after layer3, four pictures crossing as one.

Paper: C3-SL (arXiv 2207.12397). Its authors' public logs have 87.63 % uncompressed,
  87.54 at R=4 and 87.49 at R=16: single runs, the best test epoch of 100 to 150. Their
  weights are torchvision's, ours are Keras's first version
Run: python -m experiments.frontier --config=configs/c3_cifar10_resnet50.py
  The honest short table: --config.limit=12800 --config.eval_limit=2000. R=4 alone:
  experiments.finetune with this config
Expect: 4.0x fewer bytes both ways; the edge does 86 % of the FLOPs. No whole epoch was
  run yet, so there is no accuracy to expect. Mean training loss of steps 25 to 32 of
  --config.steps=200, seed 0 (2026-11-24): 2.53 at R=4, 2.64 with unitary keys and
  centered, 2.40 uncompressed (--config.forward=), from 2.79, 2.95 and 3.09 in the first
  eight: with C3 it learns more slowly
Cost: half an hour of CPU time an epoch (1.8 s a step of 64, on a busy machine): 6 hours
  for the whole table, 1.6 for the short one
"""

from splitjax.train.classify import Classify

GRID = (
    "forward=",
    "forward=c3(4),c3(16),c3(4,keys='unitary'),c3(16,keys='unitary')",
    "forward=quantize(4) backward=quantize(4,rounding='stochastic')",
    "forward=binary(center=True) backward=quantize(8,rounding='stochastic')",
    "forward=top_k(0.1) backward=top_k(0.1)",
    "forward=c3(4,keys='unitary',center=True)+quantize(4,axis='channel')"
    " backward=quantize(4,axis='channel',rounding='stochastic')",
    # What is new about each picture, which must not move; beside float32 for as long.
    "forward= flip=False edge_dropout=False epochs=2",
    "forward=delta(quantize(4,power_of_two=True),memory='f16',first='half')"
    " backward=quantize(4,rounding='stochastic') flip=False edge_dropout=False"
    " epochs=2",
)


def get_config() -> Classify:
    """One epoch; the full setting is --config.epochs=100 --config.schedule=constant.

    Other ratios and keys: --config.forward="c3(16, keys='unitary')".
    """
    return Classify(
        task="cifar10",
        model="resnet50",
        pretrained="imagenet",
        after=("layer3",),
        forward="c3(4)",
        batch_size=64,
        epochs=1,
        learning_rate=1e-4,
        weight_decay=0.0,
        clip=0.0,
        pad=0,
    )
