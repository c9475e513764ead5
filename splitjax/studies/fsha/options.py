"""The options of the demonstration of the hijacking attack, and its arms."""

import dataclasses

import jax
import jax.numpy as jnp

from splitjax import data
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.metrics.loss import cross_entropy
from splitjax.models import hijack as nets
from splitjax.privacy import guarded, leak_loss
from splitjax.train.codec_text import codec_of
from splitjax.train.experiment import check, option


@dataclasses.dataclass(frozen=True)
class Arm:
    """One combination of a cloud and an edge's defense.

    Attributes:
      cloud: "fsha", "zero" (sends zeros: the control) or "honest" (the agreed task).
      codec: of the messages, as text; "" sends floats.
      leak: the weight of the edge's leak loss.
      adaptive: whether the attacker's pilot imitates the codec.
      gain: of what the attacker sends.
    """

    cloud: str = "fsha"
    codec: str = ""
    leak: float = 0.0
    adaptive: bool = False
    gain: float = 1.0


BITS = "sign() + pack_signs()"
NOISY = "sign() + randomize(2.0) + pack_signs()"
ARMS = {
    "honest": Arm("honest"),
    "honest binary": Arm("honest", BITS),
    "zero": Arm("zero"),
    "plain": Arm(),
    "8 bits": Arm(codec="quantize(8)"),
    "binary": Arm(codec=BITS),
    "binary, adaptive": Arm(codec=BITS, adaptive=True),
    "noise": Arm(codec=NOISY),
    "noise, adaptive": Arm(codec=NOISY, adaptive=True),
    "leak loss": Arm(leak=10.0),
    "leak loss, adaptive": Arm(leak=10.0, gain=50.0),
    "all": Arm(codec=NOISY, leak=10.0),
    "all, adaptive": Arm(codec=NOISY, leak=10.0, adaptive=True, gain=50.0),
}


@dataclasses.dataclass
class Hijack:
    """Options of the demonstration."""

    task: str = option("digits", "an image data set: its train split is the edge's")
    side: int = option(8, "pixels to which pictures are scaled")
    channels: int = option(1, "of the pictures; 3 repeats gray ones")
    arms: tuple[str, ...] = option(tuple(ARMS), "which, of studies.fsha.options.ARMS")
    width: int = option(8, "of the first convolution; the paper's is 64")
    level: int = option(0, "residual blocks of the edge (paper: 4); 0: dense")
    blocks: int = option(2, "of the critic; the paper's is 6")
    steps: int = option(3000, "batches; the paper's is 10,000")
    batch_size: int = option(64, "examples of a batch")
    edge_rate: float = option(3e-4, "Adam's, of the edge; the paper's is 1e-5")
    pilot_rate: float = option(1e-3, "of pilot and decoder; the paper's is 1e-5")
    critic_rate: float = option(1e-3, "of the critic; the paper's is 1e-4")
    penalty: float = option(10.0, "of the critic's gradient; the paper's is 500")
    seeds: tuple[int, ...] = option((0,), "one run of every arm each")
    limit: int = option(10_000, "examples of each split at most")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        for arm in self.arms:
            check(arm, "arms", tuple(ARMS))
        for name in ("side", "channels", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more")
        halvings = 1 + self.level // 2
        if self.side % 2**halvings:
            raise ValueError(
                f"side={self.side}: level {self.level} halves it {halvings} times, so "
                f"it must be a multiple of {2**halvings}"
            )

    def pictures(self, split: str) -> tuple[jax.Array, jax.Array]:
        """(N, side, side, channels) float32 from -1 to 1, and their classes."""
        table = data.load_images(self.task, split).take(self.limit)
        image = jnp.asarray(table.image, jnp.float32) / 127.5 - 1
        shape = (len(table), self.side, self.side, image.shape[-1])
        if image.shape != shape:
            image = jax.image.resize(image, shape, "linear")
        if self.channels != shape[-1]:
            image = jnp.repeat(image.mean(-1, keepdims=True), self.channels, -1)
        return image, jnp.asarray(table.label, jnp.int32)

    def split(self, arm: Arm, classes: int) -> Split:
        """The edge's half with its defense, and the agreed task's head."""
        edge = nets.hijack_edge(self.width, self.level, norm="sign()" in arm.codec)
        made = cut([edge, nets.hijack_head(classes)], after="edge")
        if arm.leak:
            made = guarded(made, leak_loss(arm.leak))
        codec = codec_of(arm.codec) if arm.codec else chain()
        return Split(made, (Link(codec, chain()),), cross_entropy)
