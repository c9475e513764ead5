"""The options of a fine-tuning run, and what they allow."""

import dataclasses
from typing import ClassVar

import numpy as np

from splitjax.core.tree import Tree
from splitjax.train.cut_experiment import CutExperiment, check_fused
from splitjax.train.experiment import check, option
from splitjax.train.task import HEADS, task


@dataclasses.dataclass
class FinetuneOptions(CutExperiment):
    """Options of a fine-tuning run; the system it stands for is SFT."""

    model: str = option("minilm", "'minilm', 'mpnet', or a Hugging Face folder")
    layers: int = option(0, "the first so many of the model's layers; 0: all of them")
    dropout: bool = option(
        True, "as the model's config and its head say; False: none, nothing is drawn"
    )
    head: str = option("", f"one of {HEADS}; by default after the task's labels")
    pool: str = option("cls", "of a one-text head: 'cls', 'pooler' or 'mean'")
    max_length: int = option(128, "tokens of a text at most; longer ones are cut off")
    data_dir: str = option("", "a folder of GLUE's TSV files, where not the default")
    score_on: tuple[str, ...] = option(
        (), "data splits to score on, as ('dev',); (): all that the task has"
    )
    fused: str = option(
        "",
        "layers compute by splitjax.kernels: 'xla', or 'auto' (Pallas off the CPU; no "
        "mesh then); a parted block stays as it is",
    )
    squeeze: bool = option(True, "cut inside of a feed-forward block (SFT)")
    layer: int = option(2, "the squeezed layer, from 0; the paper's split is one more")
    rank: int = option(8, "dimensions of the code")
    skip: int = option(0, "dimensions of the low-rank skip; 0: the skip is removed")
    keep_skip: bool = option(False, "send the whole skip beside the code")
    bridge: str = option("svd", "the code: 'svd' of W, or 'pca' of the block's input")
    fit_text: tuple[str, ...] = option(
        ("snli", "rotten_tomatoes"), "public data sets whose texts the code is fit to"
    )
    fit_steps: int = option(0, "steps of distillation on public text; 0: none")
    fit_rate: float = option(5e-4, "the learning rate of distillation")
    after: tuple[str, ...] = option((), "where to cut instead, one place or several")
    forward_bits: int = option(32, "of an activation: 32, 16 (bf16), or 2 to 8")
    backward_bits: int = option(32, "of a gradient, likewise")
    grid: str = option("channel", "what shares a grid: 'token', 'channel' or 'group'")
    ragged: bool = option(True, "leave padding out of the messages")
    forward: str = option(
        "", "instead of those four: codecs of activations, as 'ragged() + quantize(4)'"
    )
    backward: str = option("", "of gradients, likewise, instead of backward_bits")

    WATCHING: ClassVar[tuple[str, ...]] = (*CutExperiment.WATCHING, "score_on")
    OF_THE_CUT: ClassVar[tuple[str, ...]] = (
        *CutExperiment.OF_THE_CUT,
        *("squeeze", "layer", "rank", "skip", "keep_skip", "bridge", "grid", "ragged"),
        *("fit_text", "fit_steps", "fit_rate", "forward_bits", "backward_bits"),
    )

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.bridge, "bridge", ("svd", "pca"))
        for name in self.score_on:
            check(name, "score_on", self.splits())
        check_fused(self.fused, self.mesh)
        if self.layers < 0:
            raise ValueError(f"layers={self.layers}: 1 or more, or 0 for all of them")
        if self.head:
            check(self.head, "head", HEADS)
        for name in ("forward", "backward"):
            text, bits = getattr(self, name), getattr(self, f"{name}_bits")
            if text and bits != 32:
                raise ValueError(
                    f"{name}={text!r} beside {name}_bits={bits}: one of them says what "
                    f"crosses; take --config.{name}_bits=32 to let the text say it"
                )
        if self.mode != "unsplit" and not (self.squeeze or self.after):
            raise ValueError(
                "a split run needs a place to cut: squeeze=True, or after=('layer_2',)"
            )

    def splits(self) -> tuple[str, ...]:
        """The data splits that the task can be scored on."""
        return task(self.task, 0).splits

    def identity(self, seed: int) -> dict:
        """What decides the numbers of one run; a model as it is needs no word."""
        fields = super().identity(seed)
        for name, own in (("layers", 0), ("dropout", True)):
            if fields[name] == own:
                del fields[name]
        return fields

    def check_facts(self, facts: dict) -> None:
        """Raises a ValueError for facts that no data of this experiment has."""
        kinds = {"classes": int, "pairs": bool, "steps_per_epoch": int}
        if {name: type(value) for name, value in facts.items()} != kinds:
            raise ValueError(f"the facts of a data set are {kinds}; got {facts!s:.200}")
        if not (0 <= facts["classes"] <= 10_000 and facts["steps_per_epoch"] >= 1):
            raise ValueError(f"0 to 10,000 classes and 1 step or more: {facts}")

    def check_batch(self, batch: Tree) -> None:
        """Raises a ValueError for specs of a batch that this experiment has not."""
        x = batch["x"]
        kinds = {"ids": np.int32, "mask": np.bool_, "types": np.int32}
        if not (isinstance(x, dict) and {"ids", "mask"} <= set(x) <= set(kinds)):
            raise ValueError(f"an input has ids, mask and maybe types: {x!s:.200}")
        size, most = -(-self.batch_size // self.micro), max(self.max_length, 1)
        for name, leaf in x.items():
            shape = x["ids"].shape
            if leaf.dtype != kinds[name] or leaf.shape != shape or len(shape) != 2:
                raise ValueError(f"x/{name}: {leaf}, beside ids {shape}")
            if shape[0] > 2 * self.batch_size or not 1 <= shape[1] <= most:
                raise ValueError(f"x/{name}: {shape}; at most {2 * size} rows, {most}")
        self.check_target(batch)
