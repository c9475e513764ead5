"""The training loop: steps, scores, log and checkpoints of one run."""

import logging
import pathlib
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from splitjax.runtime.local import Local, RunState
from splitjax.runtime.meter import Meter
from splitjax.storage.checkpoint import Checkpoints
from splitjax.storage.log import Log
from splitjax.train.experiment import Experiment, Parts
from splitjax.train.report import summarize


def inputs(batch: dict) -> dict:
    """What of a batch the model takes.

    Example:
      >>> sorted(inputs({"ids": 1, "mask": 2, "y": 3}))
      ['ids', 'mask']
    """
    return {k: batch[k] for k in ("ids", "mask", "types", "h") if k in batch}


def tick_batch(batch: dict, total: int) -> dict:
    """A micro-batch as an algorithm takes it; `total` is its step's examples.

    Example:
      >>> import numpy as np
      >>> batch = {"ids": 0, "mask": 0, "y": np.zeros(2), "n_valid": 1}
      >>> tick_batch(batch, 4)["weight"]
      np.float32(0.25)
    """
    return {
        "x": inputs(batch),
        "target": {"y": batch["y"], "n_valid": np.int32(batch["n_valid"])},
        "weight": np.float32(batch["n_valid"] / max(total, 1)),
    }


def evaluate(driver: Local, run: RunState, parts: Parts, name: str) -> float:
    """The score of a data split, through the cut."""
    predicted, wanted = [], []
    for [batch] in parts.evals[name].epoch(0, shuffle=False):
        out = np.asarray(driver.predict(run, inputs(batch)))
        predicted.append(out[: batch["n_valid"]])
        wanted.append(np.asarray(batch["y"])[: batch["n_valid"]])
    return parts.score(np.concatenate(predicted), np.concatenate(wanted))


def train(
    experiment: Experiment,
    seed: int,
    workdir: str | pathlib.Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """One run of an experiment; an interrupted one goes on where its checkpoint is.

    Args:
      experiment: what to run.
      seed: of the batches' order, dropout and new weights.
      workdir: the run's folder: config.json, metrics.jsonl, TensorBoard events,
        summary.json and checkpoints.
      progress: whether to show a bar where there is a terminal.

    Returns:
      The summary, as written to `summary.json`.

    Raises:
      ValueError: for options that make no sense, or a folder that holds another run.

    Example: `python -m experiments.finetune --config=configs/sft_stsb.py`.
    """
    experiment.validate()
    folder = pathlib.Path(workdir)
    checkpoints = Checkpoints(folder, experiment.identity(seed))
    parts = experiment.parts(seed)
    per_epoch = parts.train.steps_per_epoch()
    steps = per_epoch * experiment.epochs
    steps = min(steps, experiment.steps) if experiment.steps else steps
    meter = Meter()
    key = jax.random.fold_in(jax.random.key(seed), 1)
    driver = Local(parts.algorithm, key, meter=meter, jit=not experiment.debug)
    first, *_ = next(iter(parts.train.epoch(0, micro=experiment.micro)))
    run = driver.start(parts.params, parts.state, inputs(first))
    facts: dict[str, Any] = {"tokens": 0, "seconds": 0.0, "before": {}, "scores": []}
    if checkpoints.latest() is not None:
        tree, facts = checkpoints.restore(run._replace(step=0, tick=0)[:3])
        run = RunState(*tree, step=facts["step"], tick=facts["tick"])
        meter.merge(facts["bytes"])
        logging.info("resumed at step %d of %d", run.step, steps)
    else:
        facts["before"] = {n: evaluate(driver, run, parts, n) for n in parts.evals}
        logging.info("before training: %s", facts["before"])
    log = Log(folder, run.step)
    bar = tqdm(
        total=steps, initial=run.step, disable=None if progress else True, leave=False
    )
    started = time.monotonic() - facts["seconds"]

    def save():
        facts.update(step=run.step, tick=run.tick, bytes=meter.rows())
        facts["seconds"] = time.monotonic() - started
        checkpoints.save(run.step, run[:3], facts)

    def score(epoch):
        scores = {name: evaluate(driver, run, parts, name) for name in parts.evals}
        facts["scores"].append({"epoch": epoch, **scores})
        log.write(run.step, **{f"{name}_score": v for name, v in scores.items()})
        logging.info("epoch %d: %s", epoch, scores)

    while run.step < steps:
        epoch, done = divmod(run.step, per_epoch)
        for batches in parts.train.epoch(epoch, micro=experiment.micro, skip=done):
            total = sum(int(batch["n_valid"]) for batch in batches)
            facts["tokens"] += sum(int(np.sum(batch["mask"])) for batch in batches)
            ticks = [tick_batch(batch, total) for batch in batches]
            with _profile(experiment, run.step, folder):
                run, metrics = driver.step(run, ticks, in_flight=experiment.in_flight)
            loss = float(metrics["loss"])
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {run.step}")
            sent = meter.totals(kind="train")
            log.write(run.step, **metrics, up=sent["bytes_up"], down=sent["bytes_down"])
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}")
            every = experiment.checkpoint_every
            if every and run.step % every == 0 and run.step < steps:
                save()
            if run.step >= steps:
                break
        epoch = -(-run.step // per_epoch)
        if run.step >= steps or (
            experiment.eval_every and epoch % experiment.eval_every == 0
        ):
            score(epoch)
        save()
    bar.close()
    log.close()
    return summarize(experiment, seed, parts, facts, meter, folder)


class _profile:
    """Traces the first steps with jax.profiler, where the experiment asks for it."""

    def __init__(self, experiment: Experiment, step: int, folder: pathlib.Path):
        self.start = experiment.profile and step == 1
        self.stop = experiment.profile and step == experiment.profile
        self.folder = folder

    def __enter__(self):
        if self.start:
            jax.profiler.start_trace(str(self.folder / "profile"))

    def __exit__(self, *error):
        if self.stop:
            jax.profiler.stop_trace()
