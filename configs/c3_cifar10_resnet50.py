"""A pretrained ResNet-50 on CIFAR-10, cut after layer3, four pictures crossing as one.

Paper: C3-SL (arXiv 2207.12397). Its authors' public logs have 87.63 % uncompressed,
  87.54 at R=4 and 87.49 at R=16: single runs, the best test epoch of 100 to 150. Their
  weights are torchvision's, ours are Keras's first version
Run: python -m experiments.finetune --config=configs/c3_cifar10_resnet50.py
Expect: 4.0x fewer bytes both ways; the edge does 86 % of the FLOPs. No whole epoch was
  run yet, so there is no accuracy to expect. Mean training loss of steps 25 to 32 of
  --config.steps=200, seed 0 (2026-11-24): 2.53 at R=4, 2.64 with unitary keys and
  centered, 2.40 uncompressed (--config.forward=), from 2.79, 2.95 and 3.09 in the first
  eight: with C3 it learns more slowly
Cost: half an hour of CPU time an epoch (1.8 s a step of 64, measured on a busy machine)
"""

from splitjax.train.classify import Classify


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
