"""Options of a compressed fine-tuned model: which one, and what is trained on then."""

import dataclasses
from typing import Any

import jax

from splitjax.core.tree import Tree
from splitjax.studies.compress.tuning import FromFactors, Tuning
from splitjax.train.experiment import check, option
from splitjax.train.finetune import Finetune


@dataclasses.dataclass
class Compress(Tuning, Finetune):
    """A fine-tuned model, compressed by several methods to several sizes."""

    mode: str = option("unsplit", "'unsplit': a model is compressed as a whole")
    trained: str = option("", "the folder of a finished un-split run; '': train one")
    fisher_examples: int = option(256, "training examples that the Fisher is of")

    def validate(self) -> None:
        """Raises a ValueError for options that make no sense."""
        super().validate()
        check(self.mode, "mode", ("unsplit",))
        self.check_points("fisher_examples")

    def dense(self) -> Finetune:
        """The run whose model is compressed."""
        return Finetune(**_fields_of(self, Finetune))

    def tuned(
        self, factor: str, share: float, params: Tree, weights: Tree | None = None
    ) -> FromFactors:
        """The run that trains on from compressed parameters, by stage name."""
        given = _fields_of(self, Finetune) | {"unsplit_rate": 0.0}
        given |= {"fisher": f"{self.fisher_examples} examples"}
        point = {"factor": factor, "share": share, "params": params}
        return self.run_from(Tuned, given, **point, weights=weights)


@dataclasses.dataclass
class Tuned(Finetune, FromFactors):
    """A run that starts from compressed parameters; made by `Compress.tuned`."""

    def _given(self, config: Any, pairs: bool, key: jax.Array) -> Tree:
        """Where the run starts: all parameters, by stage name."""
        del config, pairs, key
        return self.begin


def _fields_of(experiment: Any, kind: type) -> dict[str, Any]:
    return {f.name: getattr(experiment, f.name) for f in dataclasses.fields(kind)}
