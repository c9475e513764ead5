"""The training loop: steps, scores, log and checkpoints of one run."""

import contextlib
import json
import logging
import pathlib
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from splitjax.core.algorithm import without_zero_counts
from splitjax.data.batches import ahead, model_inputs, name_of, row_ids
from splitjax.optim.lrpet import alphas
from splitjax.storage.checkpoint import Checkpoints
from splitjax.storage.lock import exclusive
from splitjax.storage.log import Log
from splitjax.train import attack
from splitjax.train.drivers import ToCloud, halves_of
from splitjax.train.experiment import Experiment
from splitjax.train.report import summarize
from splitjax.train.runs import Run, evaluate, open_run, trained
from splitjax.train.scrutiny import counted, told
from splitjax.train.second_order import tell_left_out
from splitjax.train.spending import spending
from splitjax.train.trace import Trace


def tick_batch(batch: dict, total: int) -> dict:
    """A micro-batch as an algorithm takes it; `total` is its step's examples.

    Example:
      >>> import numpy as np
      >>> batch = {"ids": 0, "mask": 0, "y": np.zeros(2), "n_valid": 1}
      >>> tick_batch(batch, 4)["weight"]
      np.float32(0.25)
    """
    made: dict[str, Any] = {
        "x": model_inputs(batch),
        "target": {"y": batch["y"], "n_valid": np.int32(batch["n_valid"])},
        "weight": np.float32(batch["n_valid"] / max(total, 1)),
    }
    if "index" in batch:
        made["ids"] = row_ids(batch)
    return made


def train(
    experiment: Experiment,
    seed: int,
    workdir: str | pathlib.Path,
    *,
    cloud: ToCloud | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """One run of an experiment; an interrupted one goes on where its checkpoint is.

    Args:
      experiment: what to run.
      seed: of the batches' order, dropout and new weights.
      workdir: the run's folder: config.json, metrics.jsonl, TensorBoard events,
        summary.json and checkpoints.
      cloud: where the other half is; None runs both here.
      progress: whether to show a bar where there is a terminal.

    Returns:
      The summary, as written to `summary.json`. A run that has one is not run again;
      attacks that it lacks are made on its last checkpoint.

    Raises:
      ValueError: for options that make no sense, or a folder that holds another run.
      InUse: when another process uses the folder.
      FloatingPointError: when the loss is not finite.
      Refused, ConnectionError, Unauthenticated: see `Edge.start`.

    Example: `python -m experiments.finetune --config=configs/sft_stsb.py`.
    """
    experiment.validate()
    folder = pathlib.Path(workdir)
    claim = Checkpoints(folder, experiment.identity(seed))
    summary = folder / "summary.json"
    if summary.exists():
        found = json.loads(summary.read_text())
        if set(experiment.attack) <= set(found.get("attacks", ())):
            return found
        with trained(experiment, seed, folder, cloud) as run:
            attack.refuse(experiment.attack, run)
            made = attack.attacked(experiment.attack, run, seed)
        found["attacks"] = {**found.get("attacks", {}), **made}
        summary.write_text(json.dumps(found, indent=2) + "\n")
        return found
    with exclusive(folder):
        try:
            run = open_run(experiment, seed, folder, cloud)
        except BaseException:  # a cut behind the last layer, a cloud of another config
            claim.release()
            raise
        with contextlib.closing(run.driver):
            return _train(experiment, seed, folder, run, progress)


def _train(
    experiment: Experiment, seed: int, folder: pathlib.Path, run: Run, progress: bool
) -> dict[str, Any]:
    parts, driver, facts = run.parts, run.driver, run.facts
    meter = driver.meter
    attack.refuse(experiment.attack, run)
    per_epoch = parts.train.steps_per_epoch()
    steps = per_epoch * experiment.epochs
    steps = min(steps, experiment.steps) if experiment.steps else steps
    if spent := spending(experiment, parts, epochs=-(-steps // per_epoch)):
        facts["privacy"] = spent
    if run.state.step:
        logging.info("resumed at step %d of %d", run.state.step, steps)
    else:
        facts["before"] = evaluate(run)
        logging.info("before training: %s", facts["before"])
    hidden = None if progress else True
    started = time.monotonic() - facts["seconds"]

    def save():
        state = run.state
        facts.update(step=state.step, tick=state.tick, halves=halves_of(driver))
        facts["bytes"] = meter.rows()
        facts["seconds"] = time.monotonic() - started
        facts["state_bytes"] = driver.state_bytes
        driver.saving(state)
        run.checkpoints.save(state.step, (state.edge, state.shared, state.slot), facts)
        driver.saved(state)

    with (
        contextlib.closing(Log(folder, run.state.step)) as log,
        tqdm(total=steps, initial=run.state.step, disable=hidden, leave=False) as bar,
        Trace(folder / "profile", experiment.profile) as trace,
    ):
        while run.state.step < steps:
            epoch, done = divmod(run.state.step, per_epoch)
            steps_of = parts.train.epoch(epoch, micro=experiment.micro, skip=done)
            for batches, later in ahead(steps_of):
                if later and driver.remembers:
                    driver.prefetch(np.concatenate([row_ids(b) for b in later]))
                total = sum(int(batch["n_valid"]) for batch in batches)
                facts["tokens"] += sum(int(np.sum(batch["mask"])) for batch in batches)
                ticks = [tick_batch(batch, total) for batch in batches]
                trace.step()
                run.state, metrics = driver.step(
                    run.state,
                    ticks,
                    in_flight=experiment.in_flight,
                    names=[name_of(batch) for batch in batches],
                )
                step, loss = run.state.step, float(metrics["loss"])
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss} at step {step}")
                told(facts, metrics, step)
                counted(facts, metrics, step)
                sent = meter.totals(kind="train")
                shown = without_zero_counts(metrics)
                log.write(step, **shown, up=sent["bytes_up"], down=sent["bytes_down"])
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}")
                every = experiment.checkpoint_every
                # The end of an epoch is saved with its score, below.
                if every and step % every == 0 and step % per_epoch and step < steps:
                    save()
                if step >= steps:
                    break
            epoch, every = -(-run.state.step // per_epoch), experiment.eval_every
            if run.state.step >= steps or (every and epoch % every == 0):
                scores = evaluate(run)
                facts["scores"].append({"epoch": epoch, **scores})
                named = {f"{name}_score": value for name, value in scores.items()}
                log.write(run.state.step, **named)
                logging.info("epoch %d: %s", epoch, scores)
            if kept := alphas((run.state.edge, run.state.shared, run.state.slot)):
                named = {f"alpha/{path}": float(a) for path, a in kept.items()}
                log.write(run.state.step, **named)
            tell_left_out(log, run.state)
            save()
    if experiment.attack:
        facts["attacks"] = attack.attacked(experiment.attack, run, seed)
    return summarize(experiment, seed, parts, facts, meter, folder)
