"""Attacks on a run: what its messages give away, beside its score and its bytes.

They read what crosses in evaluation, on held-out data. The attacker knows one half of
it with its messages (its own data, sent through the edge's half, whose weights a cloud
has often given itself); the other half it has to guess, and is judged on.
"""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.keys import fold
from splitjax.core.split import BACKWARD, FORWARD
from splitjax.core.tree import Tree
from splitjax.data.batches import model_inputs
from splitjax.privacy import (
    decoder_inversion,
    distance_correlation,
    label_leakage,
    leak_auc,
    ridge_inversion,
    sign_entropy,
    spectral_attack,
    ssim,
    variance_left,
)
from splitjax.privacy.wiretap import wiretap
from splitjax.runtime.local import Local
from splitjax.train.experiment import Parts
from splitjax.train.private import Private, private_of, token_recovery

EXAMPLES = 2000  # of the held-out split at most
ROWS = 8000  # tokens or pictures that an inverse is fit to, and half as many it guesses
FEW = 512  # rows whose distances are compared
COLLAPSED = 0.02  # bits of sign entropy


class Heard(NamedTuple):
    """What was read from the first link, and of whom.

    Attributes:
      message: (N, J) rows as decoded.
      private: what the rows were made of.
      example: (N,) which example each row belongs to.
      known: (N,) whether the example is the attacker's own.
      gradient: by link (M, I) gradients, a row for an example; none that was not sent.
      label: (M,) labels of the examples.
    """

    message: np.ndarray
    private: Private
    example: np.ndarray
    known: np.ndarray
    gradient: dict[int, np.ndarray]
    label: np.ndarray


def refuse(attacks: tuple[str, ...], run: Any) -> None:
    """Raises a ValueError for attacks that make no sense here, before a run starts.

    Args:
      attacks: names of `experiment.ATTACKS`.
      run: a `train.runs.Run`.
    """
    parts = run.parts
    if not attacks or len(parts.split) < 2:
        return
    if not isinstance(run.driver, Local):
        raise ValueError(
            "an attack reads both ends of the links, and this process has the edge's "
            "alone: leave attack away, or run with mode='split'"
        )
    name = next(iter(parts.evals))
    [batch] = next(iter(parts.evals[name].epoch(0, shuffle=False)))
    y = batch["y"]
    if "label" in attacks and (y.ndim > 1 or not np.issubdtype(y.dtype, np.integer)):
        raise ValueError(
            f"attack 'label' guesses a class of each example; the labels of {name!r} "
            f"are {y.dtype} {y.shape}: leave it out"
        )


def attacked(attacks: tuple[str, ...], run: Any, seed: int) -> dict[str, dict]:
    """Runs some attacks on a run.

    Args:
      attacks: names of `experiment.ATTACKS`.
      run: a `train.runs.Run` that holds both halves.
      seed: of the attacker.

    Returns:
      By attack the figures, each a column of the report; none without a cut.
    """
    if not attacks or len(run.parts.split) < 2:
        return {name: {} for name in attacks}
    heard = listen(run.parts, run.state, seed)
    key = jax.random.key(seed)
    made = {
        "inversion": lambda: _inversion(heard, "inversion", None),
        "decoder": lambda: _inversion(heard, "decoder", fold(key, "decoder")),
        "label": lambda: _label(heard, seed),
        "dcor": lambda: _dcor(heard),
    }
    found = {name: made[name]() for name in attacks}
    logging.info("attacks: %s", found)
    return found


def listen(parts: Parts, state: Any, seed: int) -> Heard:
    """Reads the links for the examples of the first held-out split.

    Args:
      parts: of the run.
      state: a `runtime.local.RunState`.
      seed: of which examples are the attacker's own, and of the codecs' noise.
    """
    split, batches = parts.split, next(iter(parts.evals.values()))
    assert parts.algorithm.merge is not None
    params, other = parts.algorithm.merge(state.edge, state.shared, state.slot)
    params, other = split.cut.partition(params), split.cut.partition(other)
    links = ends_of(split.cut.owners, state.edge, state.slot)

    @jax.jit
    def tap(params, other, links, x, target, key):
        return wiretap(split, params, other, links, x, target, key=key)

    own = np.random.default_rng([seed, 7]).permutation(len(batches))
    own = set(own[: len(own) // 2].tolist())
    message, example, private, label = [], [], [], []
    gradient: dict[int, list] = {}
    for number, [batch] in enumerate(batches.epoch(0)):
        if sum(map(len, label)) >= EXAMPLES:
            break
        valid = int(batch["n_valid"])
        target = {"y": batch["y"], "n_valid": np.int32(valid)}
        key = fold(jax.random.key(seed), "attack", number)
        made = tap(params, other, links, model_inputs(batch), target, key)
        seen = jax.device_get(made)
        rows, of, what = private_of(batch, seen.forward[0], params[0])
        message.append(rows)
        example.append(of)
        private.append(what)
        label.append(batch["y"][:valid])
        for link, tree in enumerate(seen.backward):
            if tree is not None:
                # The loss is a mean: a short batch weighs more.
                gradient.setdefault(link, []).append(valid * _examples(tree, batch))
    examples = np.concatenate(example)
    return Heard(
        np.concatenate(message),
        Private.join(private),
        examples,
        np.isin(examples, list(own)),
        {link: np.concatenate(rows) for link, rows in gradient.items()},
        np.concatenate(label),
    )


def ends_of(owners: tuple[str, ...], edge: dict, slot: dict) -> tuple:
    """The ends of every link, as `Split` takes them, from what the parties hold.

    Args:
      owners: of the segments.
      edge: what the edge holds.
      slot: what the cloud holds for it.
    """
    held, links = {"edge": edge, "cloud": slot}, []
    for number, (tx, rx) in enumerate(zip(owners, owners[1:], strict=False)):
        one: dict[str, Tree] = {"smooth": edge[f"link/{number}/smooth"]}
        for direction, a, b in ((FORWARD, tx, rx), (BACKWARD, rx, tx)):
            name = f"link/{number}/{direction}"
            one[direction] = {"tx": held[a][name], "rx": held[b][name]}
        links.append(one)
    return tuple(links)


def _examples(tree: Tree, batch: dict) -> np.ndarray:
    """A gradient as one row for each valid example; tokens of a text are summed."""
    valid, size = int(batch["n_valid"]), len(batch["y"])
    leaves = [np.asarray(a, np.float64) for a in jax.tree.leaves(tree)]
    texts = "ids" in batch
    flat = []
    for leaf in leaves:
        if texts and leaf.ndim == 3:
            leaf = leaf.sum(1)
        # Two texts of one example stand one after the other.
        towers = leaf.reshape(leaf.shape[0] // size, size, -1)
        flat += list(towers)
    return np.concatenate(flat, 1)[:valid]


def _inversion(heard: Heard, name: str, key: jax.Array | None) -> dict[str, float]:
    known, rest = np.flatnonzero(heard.known), np.flatnonzero(~heard.known)
    known, rest = known[:ROWS], rest[: ROWS // 2]
    truth = heard.private.rows
    if key is None:
        guess = ridge_inversion(heard.message[known], truth[known])
    else:
        guess = decoder_inversion(heard.message[known], truth[known], key=key)
    made = guess(heard.message[rest])
    found = {f"{name}_variance_left": variance_left(truth[rest], made)}
    if heard.private.shape:
        shape = (-1, *heard.private.shape)
        window = min(7, *heard.private.shape[:2])
        pair = (jnp.asarray(a.reshape(shape), jnp.float32) for a in (truth[rest], made))
        like = ssim(*pair, window=window)
        found[f"{name}_ssim"] = float(np.mean(like))
    if heard.private.table is not None:
        found |= token_recovery(heard.private, made, rest, heard.example, name)
    return {one: round(value, 4) for one, value in found.items()}


def _label(heard: Heard, seed: int) -> dict[str, float]:
    """The worst over the links whose gradients cross."""
    worst: dict[str, float] = {}
    for rows in heard.gradient.values():
        for name, value in label_leakage(rows, heard.label, seed=seed).items():
            worst[name] = max(value, worst.get(name, 0.0))
    classes = np.unique(heard.label)
    if len(classes) == 2 and len(heard.message) == len(heard.label):
        score = spectral_attack(heard.message[: len(heard.label)])
        auc = leak_auc(score, heard.label == classes[1], signed=False)
        worst["label_spectral_auc"] = auc
    if not heard.gradient:
        logging.info("attack 'label': no gradient crosses a link")
    return {name: round(value, 4) for name, value in worst.items()}


def _dcor(heard: Heard) -> dict[str, float]:
    rest = np.flatnonzero(~heard.known)[:FEW]
    z = heard.message[rest].astype(np.float32)
    x = heard.private.rows[rest].astype(np.float32)
    entropy = float(jax.jit(sign_entropy)(z))
    if entropy < COLLAPSED:
        logging.warning(
            "the messages are nearly constant (%.4f bits a value): they leak nothing "
            "and tell the model nothing. Is the leak loss too heavy?",
            entropy,
        )
    return {
        "dcor": round(float(jax.jit(distance_correlation)(x, z)), 4),
        "sign_entropy": round(entropy, 4),
    }
