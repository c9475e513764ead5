"""Predicts for texts or pictures of the user's, through the cut of a trained run.

Example: python -m experiments.predict --config=configs/sft_stsb.py --texts=pairs.tsv
"""

import json
import sys

from absl import flags as absl_flags

from splitjax.train import door_flags, flags
from splitjax.train.runs import predict, trained

LAUNCH = flags.define("configs/sft_stsb.py")
door_flags.define_edge("")
TEXTS = absl_flags.DEFINE_string(
    "texts",
    None,
    "a file: one text a line, or two with a tab between; or an .npz of `image`",
    required=True,
)


def main(_: list[str]) -> None:
    """Prints one line of JSON for each text, pair or picture."""
    experiment = LAUNCH.run
    seed = experiment.seeds[0]
    folder = LAUNCH.workdir / f"{experiment.mode}_seed_{seed}"
    with trained(experiment, seed, folder, door_flags.to_cloud()) as run:
        texts, batches = experiment.texts(TEXTS.value)
        predicted = predict(run, batches)[0].tolist()
    for text, value in zip(texts, predicted, strict=True):
        sys.stdout.write(json.dumps({"text": text, "prediction": value}) + "\n")


if __name__ == "__main__":
    flags.run(main)
