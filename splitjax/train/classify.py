"""Training an image classifier that is cut at a named place."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np

from splitjax import data
from splitjax.core.cut import Cut
from splitjax.core.stage import Stage
from splitjax.core.tree import Tree, is_float, spec_of
from splitjax.data.batches import model_inputs
from splitjax.data.images import statistics
from splitjax.models import keras_resnet
from splitjax.models.cnn import cnn
from splitjax.models.pixels import pixels
from splitjax.models.resnet import CONFIGS, KERAS, STEMS, resnet
from splitjax.models.vgg import vgg
from splitjax.train.cut_experiment import DTYPES
from splitjax.train.experiment import Parts, check, option
from splitjax.train.low_rank import LowRank
from splitjax.train.task import task

MODELS = ("cnn", "cnn_norm", *CONFIGS, "vgg16", "vgg16_norm")
LARGEST = 1024  # pixels of a side that a cloud builds programs for


@dataclasses.dataclass
class Classify(LowRank):
    """A run on pictures and their classes, and how its parts are built.

    The edge holds the pictures and the stages before the cut. `tokens` of a summary
    counts pictures, and `baseline_bytes` is what the same cuts would have sent for them
    in float32 both ways.
    """

    model: str = option("cnn", f"one of {MODELS}")
    pretrained: str = option(
        "", "'imagenet': the pinned ResNet-50; or a folder of its layout"
    )
    stem: str = option("", "of a ResNet: 'cifar' (the default) or 'imagenet'")
    size: int = option(0, "height and width to scale pictures to; 0: as they are")
    flip: bool = option(True, "mirror half of the pictures in training")
    pad: int = option(4, "pixels by which a picture is moved at most in training")
    hold_out: int = option(
        0, "score on so many training pictures ('dev'), left out, and not on the test's"
    )
    eval_limit: int = option(0, "pictures of a split to score on at most; 0: all")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.model, "model", MODELS)
        if self.stem:
            check(self.stem, "stem", STEMS)
        if self.stem and (not self.model.startswith("resnet") or self.pretrained):
            raise ValueError(
                f"stem={self.stem!r} is for a ResNet that starts from chance: a "
                "pretrained one has its own, other models have none"
            )
        if self.pretrained and self.model != "resnet50":
            raise ValueError(
                f"pretrained={self.pretrained!r} is for model='resnet50', not "
                f"{self.model!r}"
            )
        for name in ("size", "pad", "hold_out", "eval_limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 0 or more")
        if self.mode != "unsplit" and not self.after:
            raise ValueError("a split run needs a place to cut, as after=('layer3',)")

    def parts(self, seed: int, *, weights: bool = True) -> Parts:
        """Builds model, cut, links, data and optimizer."""
        table, evals = self._tables()
        train = self.batches(table, seed)
        mean, deviation = statistics(table)
        facts = {
            "classes": table.classes,
            "mean": list(mean),
            "deviation": list(deviation),
            "steps_per_epoch": train.steps_per_epoch(),
        }
        [first, *_] = next(iter(train.epoch(0, micro=self.micro)))
        made = self.model_parts(seed, facts, model_inputs(first), weights=weights)
        scored = {name: self.batches(rows, seed) for name, rows in evals.items()}
        return dataclasses.replace(made, train=train, evals=scored, facts=facts)

    def model_parts(
        self, seed: int, facts: dict, x: Tree, *, weights: bool = True
    ) -> Parts:
        """All parts but the data: what a cloud builds, who has not seen it."""
        about = task(self.task, facts["classes"])
        stages = self.stages(facts)

        def given():
            return self._given(facts["classes"])

        params, state = self.started(stages, seed, x, given if weights else None)
        split = self.split_of(stages, about.loss)
        return self.parts_of(
            split,
            params,
            state,
            x,
            seed=seed,
            about=about,
            steps_per_epoch=facts["steps_per_epoch"],
            width=crossing_width(split.cut, params, state, spec_of(x)),
        )

    def stages(self, facts: dict) -> tuple[Stage, ...]:
        """The model, from pixels to logits."""
        classes, dtype = facts["classes"], DTYPES[self.dtype]
        moves: dict[str, Any] = {"flip": self.flip, "pad": self.pad, "size": self.size}
        if self.pretrained:
            front = keras_resnet.keras_pixels(**moves)
            return (front, *resnet(KERAS, classes, dtype=dtype))
        mean, deviation = (
            [255 * value for value in facts[name]] for name in ("mean", "deviation")
        )
        front = pixels(mean, deviation, **moves)
        if self.model in CONFIGS:
            stem = self.stem or "cifar"
            config = dataclasses.replace(CONFIGS[self.model], stem=stem)
            return (front, *resnet(config, classes, dtype=dtype))
        make = cnn if self.model.startswith("cnn") else vgg
        norm = self.model.endswith("_norm")
        return (front, *make(classes, norm=norm, dtype=dtype))

    def batches(self, table: data.ImageTable, seed: int) -> data.ImageBatches:
        """A table's pictures in batches."""
        return data.ImageBatches(
            table, self.batch_size, seed=seed, fixed=self.send_once
        )

    def texts(self, path: str) -> tuple[list, data.ImageBatches]:
        """Pictures of the user's to predict for, named by number, and their batches.

        Args:
          path: an .npz file with `image` (N, height, width, channels) uint8.

        Raises:
          DataError: for a bad file, or pictures of another shape than the task's.
        """
        like = self._load("train")
        try:
            with np.load(path) as file:
                image = file["image"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise data.DataError(
                f"{path} is no .npz file with an array `image`: {error}"
            ) from error
        labels = np.zeros(len(image), np.int32)
        table = data.ImageTable(path, "predict", image, labels, like.classes)
        if table.shape != like.shape:
            raise data.DataError(
                f"{path}: pictures are {table.shape}, those of {self.task} {like.shape}"
            )
        return list(range(len(table))), self.batches(table, 0)

    def norm_eps(self) -> float:
        """Of the batch norms, as the low rank needs it."""
        return KERAS.eps if self.pretrained else super().norm_eps()

    def check_facts(self, facts: dict) -> None:
        """Raises a ValueError for facts that no data of this experiment has."""
        names = {"classes", "mean", "deviation", "steps_per_epoch"}
        if set(facts) != names:
            raise ValueError(f"the facts of a data set are {sorted(names)}: {facts}")
        counts = (facts["classes"], facts["steps_per_epoch"])
        if any(type(n) is not int or n < 1 for n in counts) or counts[0] > 10_000:
            raise ValueError(f"1 to 10,000 classes and 1 step or more: {facts}")
        mean, deviation = facts["mean"], facts["deviation"]
        lists = isinstance(mean, list) and isinstance(deviation, list)
        if not (lists and 1 <= len(mean) == len(deviation) <= 4):
            raise ValueError(f"one mean and deviation for each channel: {facts}")
        if any(type(v) is not float or not 0 <= v <= 1 for v in mean + deviation):
            raise ValueError(f"means and deviations are from 0 to 1: {facts}")

    def check_batch(self, batch: Tree) -> None:
        """Raises a ValueError for specs of a batch that this experiment has not."""
        x = batch["x"]
        # A micro-batch in training; whole batches are predicted for.
        sizes = {-(-self.batch_size // self.micro), self.batch_size}
        if not (isinstance(x, dict) and set(x) == {"image", "mask"}):
            raise ValueError(f"an input has image and mask: {x!s:.200}")
        image, mask = x["image"], x["mask"]
        if image.dtype != np.uint8 or len(image.shape) != 4:
            raise ValueError(f"x/image is uint8 (B, H, W, C): {image}")
        if image.shape[0] not in sizes:
            raise ValueError(f"x/image has {sorted(sizes)} rows: {image}")
        if (
            max(image.shape[1:3]) > LARGEST
            or image.shape[3] > 4
            or not all(image.shape)
        ):
            raise ValueError(f"x/image is {LARGEST} pixels wide at most: {image}")
        if mask.dtype != np.bool_ or mask.shape != image.shape[:1]:
            raise ValueError(f"x/mask is bool ({image.shape[0]},): {mask}")
        self.check_target(batch)

    def _load(self, split: str) -> data.ImageTable:
        return data.load_images(self.task, split, data_dir=self.data_dir or None)

    def _tables(self) -> tuple[data.ImageTable, dict[str, data.ImageTable]]:
        """What is learned from, and what is scored on."""
        table = self._load("train")
        if self.hold_out >= len(table):
            raise ValueError(
                f"hold_out={self.hold_out} leaves nothing of {len(table)} pictures"
            )
        kept = np.arange(len(table)) < len(table) - self.hold_out
        if self.hold_out:
            evals = {"dev": table.pick(~kept)}
            table = table.pick(kept)
        else:
            evals = {"test": self._load("test")}
        if self.eval_limit:
            evals = {name: rows.take(self.eval_limit) for name, rows in evals.items()}
        return table.take(self.limit) if self.limit else table, evals

    def _given(self, classes: int) -> tuple[Tree, Tree]:
        """Pretrained parameters and statistics; a head of other classes is new."""
        if not self.pretrained:
            return {}, {}
        folder = pathlib.Path(self.pretrained)
        if self.pretrained == "imagenet":
            folder = data.folder("resnet50", fetch=True)
        params, state = keras_resnet.load(folder)
        if params["head"]["classifier"]["bias"].shape != (classes,):
            params = {name: leaves for name, leaves in params.items() if name != "head"}
        return params, state


def crossing_width(cut: Cut, params: Tree, state: Tree, x: Tree) -> int:
    """Float values of one example that cross all the cuts of a model, one way.

    Args:
      cut: the model.
      params: of the whole model, by stage name (arrays or specs).
      state: likewise.
      x: specs of an input.
    """
    total, spec = 0, x
    parts = zip(cut.segments, cut.partition(params), cut.partition(state), strict=True)
    for segment, p, s in list(parts)[:-1]:

        def run(p, s, x, segment=segment):
            return segment.apply(p, s, x, key=None, train=False)[0]

        spec = jax.eval_shape(run, p, s, spec)
        leaves = [leaf for leaf in jax.tree.leaves(spec) if is_float(leaf)]
        total += sum(math.prod(leaf.shape[1:]) for leaf in leaves)
    return total
