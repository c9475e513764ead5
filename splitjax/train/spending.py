"""What a run spends of its examples' privacy, where its links have noise."""

import dataclasses
import logging
import pathlib
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.codec import Codec, is_noisy, message_spec, split_smooth
from splitjax.core.message import gradient_of
from splitjax.core.split import BACKWARD, FORWARD, Split
from splitjax.core.tree import Tree, spec_of, split_floats
from splitjax.data.batches import model_inputs
from splitjax.privacy.budget import budget
from splitjax.train.experiment import Experiment, Parts

KEY_BYTES = 8


def spending(
    experiment: Experiment, parts: Parts, *, epochs: int
) -> list[dict[str, Any]]:
    """The budget of each codec with noise that an edge sends through; it is logged.

    Per training example, by the widest batch of an epoch: a bound for shorter texts.
    Examples that are only scored spend as much for each time that they are.

    Args:
      experiment: the run's.
      parts: what it built.
      epochs: passes over the training data, a part of one counting whole.

    Returns:
      For each such link and direction the fields of `Budget`, how often an example is
      sent and what else of it goes up without noise (integers of the message left
      aside), as JSON types; nothing where no link has noise.
    """
    noisy = list(_noisy(parts.split))
    if not noisy:
        return []
    batch = _widest(parts, experiment.micro)
    messages = 1 if parts.send_once else epochs
    found = []
    for link, direction, codec in noisy:
        spec = _arriving(parts, spec_of(model_inputs(batch)), link, direction)
        spent = budget(
            codec,
            spec,
            examples=len(batch["y"]),
            messages=messages,
            delta=experiment.privacy_delta,
        )
        if spent is None:
            continue
        beside = list(_beside(experiment, parts.split))
        where = f"link {link}, {direction}, {messages} messages of each example"
        logging.info("privacy spent at %s: %s", where, spent)
        logging.info("going up without noise: %s", ", ".join(beside) or "nothing")
        row = {"link": link, "direction": direction, "messages": messages}
        found.append({**row, **dataclasses.asdict(spent), "without_noise": beside})
    return found


def own_key(parts: Parts, key: jax.Array, folder: pathlib.Path) -> jax.Array:
    """The key of an edge whose cloud must not guess it: a secret where there is noise.

    The cloud has the run's key by the seed, and could take noise off that was drawn
    with it. So an edge with noise draws a key once and keeps it in its own folder, for
    a run that goes on. Runs without noise keep the run's key, and their numbers.

    Args:
      parts: what the experiment built.
      key: of the run.
      folder: of this edge's run; the key is the file "noise.key" there, of 8 bytes (as
        many as JAX's default generator has).
    """
    if not any(True for _ in _noisy(parts.split)):
        return key
    path = folder / "noise.key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(KEY_BYTES))
    data = path.read_bytes()
    if len(data) != KEY_BYTES:
        raise ValueError(f"{path} has {len(data)} bytes, not {KEY_BYTES}: remove it")
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(data, np.uint32)))


def _noisy(split: Split):
    """Links, directions and whole codecs through which an edge sends with noise."""
    for number, link in enumerate(split.links):
        owners = split.cut.owners[number : number + 2]
        for owner, direction in zip(owners, (FORWARD, BACKWARD), strict=True):
            codec = getattr(link, direction)
            if owner == "edge" and is_noisy(codec):
                yield number, direction, codec


def _beside(experiment: Experiment, split: Split):
    """What an edge tells the cloud besides the messages of its codecs."""
    if split.cut.owners[-1] == "cloud":
        yield "labels"
    if experiment.exact_norm and experiment.clip and not split.frozen:
        yield "norm of the edge's gradient"


def _widest(parts: Parts, micro: int) -> dict:
    def size(batch):
        return sum(np.size(leaf) for leaf in model_inputs(batch).values())

    batches = (one for step in parts.train.epoch(0, micro=micro) for one in step)
    return max(batches, key=size)


def _arriving(parts: Parts, x: Tree, link: int, direction: str) -> Tree:
    """What a codec is given, as specs; decoding restores what was encoded."""
    for index in range(link + 1):
        segment = parts.split.cut.segments[index]

        def run(params, state, x, segment=segment):
            return segment.apply(params, state, x, key=None, train=False)[0]

        x = jax.eval_shape(run, parts.params[index], parts.state[index], x)
    if direction == FORWARD:
        return x
    smooth: Codec = split_smooth(parts.split.links[link].forward)[0]
    message = message_spec(smooth, x)
    return gradient_of(split_floats(message)[0], message)
