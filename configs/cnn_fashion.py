"""A small CNN on Fashion-MNIST, cut after its first block: for the whole codec list.

Paper: none of its own; codecs are compared on it
Run: python -m experiments.frontier --config=configs/cnn_fashion.py
Expect: the whole list was not run yet. By experiments.finetune, test accuracy .8908
  after three epochs, split in float32 and un-split alike (--config.compare=True), seed
  0; .1120 before (2026-11-24). Without a codec it sends 25 kB a picture each way; the
  edge does 7 % of the FLOPs
  One epoch, `experiments.frontier --config=configs/cnn_fashion.py --config.epochs=1`
  with --config.attack="('inversion','dcor')" and grids such as
  --grid="forward=quantize(4) backward=quantize(4,rounding='stochastic')":
  un-split and float32 .8572; 8 bits each way .8578 at 3.5x, 4 bits .8580 at 6.4x, 2 up
  and 4 back .8581 at 8.0x; of the pixels' variance a linear attack cannot read 7, 7, 7
  and 8 %. `binary` stays at .1000: behind a relu all signs are one but for center=True
Cost: 4 minutes of CPU time a point, most of it without a codec; 1.5 hours in all
"""

from splitjax.train.classify import Classify

GRID = (
    "forward=",
    "forward=cast('bf16') backward=cast('bf16')",
    "forward=quantize(8) backward=quantize(8,rounding='stochastic')",
    "forward=quantize(4) backward=quantize(4,rounding='stochastic')",
    "forward=quantize(2) backward=quantize(4,rounding='stochastic')",
    "forward=c3(4),c3(16),c3(4,keys='unitary'),c3(16,keys='unitary')",
    "forward=binary(center=True) backward=quantize(8,rounding='stochastic')",
    "forward=binary(center=True) backward=scaled_sign()",
    "forward=sign(center=True)+randomize(2.0)+pack_signs()"
    " backward=quantize(8,rounding='stochastic')",
    "forward=top_k(0.1) backward=top_k(0.1)",
    "forward=random_k(0.1) backward=random_k(0.1,unbiased=True)",
    "forward=projection(8) backward=projection(8)",
    "forward=bounded(0.01,relative=True,block=None)+lossless()"
    " backward=bounded(0.01,relative=True,block=None)+lossless()",
    # Chains.
    "forward=c3(4,keys='unitary',center=True)+quantize(8)"
    " backward=quantize(8,rounding='stochastic')",
    "forward=top_k(0.1)+quantize(4) backward=top_k(0.05)+quantize(4)",
    "forward=quantize(2)+lossless() backward=quantize(2,rounding='stochastic')"
    "+lossless()",
    # What is new about each picture, which must not move; beside float32 for as long.
    "forward= flip=False pad=0",
    "forward=delta(quantize(2,power_of_two=True),memory='f16',first='half')"
    " backward=quantize(4,rounding='stochastic') flip=False pad=0 edge_dropout=False",
)


def get_config() -> Classify:
    """The options of this run."""
    return Classify(
        task="fashion_mnist",
        model="cnn",
        after=("block1",),
        batch_size=64,
        epochs=3,
        learning_rate=1e-3,
        weight_decay=1e-4,
        clip=0.0,
        pad=2,
    )
