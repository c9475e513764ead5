"""Routers: which expert computes which token, within places that are fixed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from splitjax.core.keys import fold
from splitjax.core.tree import nearest

ROUTERS = ("top1_st", "top1_scale", "top2")
LEAST = 4  # places that an expert has in a short group


class Routing(NamedTuple):
    """Who computes what, for G groups of N tokens and E experts with C places each.

    Attributes:
      token: (G, E, C) int32, the token at each place; N where there is none.
      gate: (G, E, C) float32, the weight of its output; 0 where there is none.
      balance: float32 scalar, E sum_e f_e P_e, the mean over groups with tokens: 1
        where routing is uniform, E where all goes to one expert.
      counts: (E,) int32, places that are taken.
      dropped: int32, choices for which there was no place.
      wanted: int32, choices; counts and dropped add up to it.
    """

    token: jax.Array
    gate: jax.Array
    balance: jax.Array
    counts: jax.Array
    dropped: jax.Array
    wanted: jax.Array


def capacity_of(tokens: int, experts: int, factor: float) -> int:
    """Places of each expert: `tokens * factor / E`, from `LEAST` to all of them.

    Args:
      tokens: N of a group.
      experts: E.
      factor: above 0; 1 is just enough where routing is uniform, E is always enough.

    Raises:
      ValueError: for a factor that gives no places.

    Example:
      >>> capacity_of(64, 8, 1.25), capacity_of(8, 8, 1.25), capacity_of(2, 8, 1.25)
      (10, 4, 2)
    """
    if experts < 1:
        raise ValueError(f"experts={experts}: 1 or more")
    if not factor > 0:
        raise ValueError(
            f"a capacity of {factor} times an expert's share, {LEAST} at least: both "
            "above 0, or every token would be dropped"
        )
    return max(1, min(tokens, max(LEAST, int(tokens * factor / experts))))


def route(
    logits: jax.Array,
    mask: jax.Array,
    *,
    router: str = "top1_st",
    capacity: int,
    key: jax.Array | None = None,
    threshold: float = 0.2,
) -> Routing:
    """Gives every token of the mask a place at its expert, or at its two.

    With p = softmax(logits), a token goes to the expert with the largest p (of equal
    ones the first). Its gate, the weight of that expert's output:

    * "top1_st": p / stop_gradient(p): 1, with a gradient to the router.
    * "top1_scale": p.
    * "top2": p of the best two, divided by their sum. With a key the second is wanted
      with the probability min(1, p_2 / (p_1 + p_2) / threshold) alone; where it is not,
      the first has the gate 1.

    Places are given in the order of the tokens, to all first choices before the second
    ones. A choice without a place is dropped: it adds nothing to the output.

    Args:
      logits: (G, N, E), of any float; computed in float32.
      mask: (G, N) bool; other tokens take no place and count in no loss.
      router: one of `ROUTERS`.
      capacity: C, places of an expert in a group; see `capacity_of`.
      key: of the choice whether a second expert is wanted; None wants it always.
      threshold: see above.

    Raises:
      ValueError: for another router, a capacity below 1, a threshold that is not above
        0, or "top2" of fewer than two experts.

    Example:
      >>> logits = jnp.array([[[0.0, 9.0], [0.0, 9.0], [9.0, 0.0]]])
      >>> found = route(logits, jnp.ones((1, 3), bool), capacity=1)
      >>> found.token.tolist(), found.counts.tolist(), int(found.dropped)
      ([[[2], [0]]], [1, 1], 1)

    Reference:
      Fedus, Zoph, Shazeer, Switch transformers, 2021, arXiv 2101.03961 (top 1, and the
      balance); Lepikhin et al., GShard, 2020, arXiv 2006.16668, algorithm 1 (top 2).
    Differs:
      Tables of places instead of one-hot products. Gates of "top2" add up to 1 also
      where the second is not wanted.
    """
    if router not in ROUTERS:
        raise ValueError(f"router={router!r}: {nearest(router, ROUTERS)}")
    experts = logits.shape[-1]
    if capacity < 1 or not threshold > 0:
        raise ValueError(f"{capacity=}, {threshold=}: expected 1 or more, and above 0")
    if router == "top2" and experts < 2:
        raise ValueError("router='top2' needs 2 experts or more; take 'top1_st'")

    def one(logits, mask, key):
        return _group(logits, mask, key, router, capacity, threshold)

    keys = None if key is None else jax.random.split(key, logits.shape[0])
    logits = logits.astype(jnp.float32)
    made = jax.vmap(one, (0, 0, None if key is None else 0))(logits, mask, keys)
    filled = mask.any(1).astype(jnp.float32)
    balance = (made.balance * filled).sum() / jnp.maximum(filled.sum(), 1)
    return made._replace(
        balance=balance,
        counts=made.counts.sum(0),
        dropped=made.dropped.sum(),
        wanted=made.wanted.sum(),
    )


def _group(logits, mask, key, router, capacity, threshold) -> Routing:
    n, experts = logits.shape
    p = jax.nn.softmax(logits)
    choices, gates, wanted = _choices(p, key, router, threshold)
    wanted = wanted & mask[None]  # (K, N), the first choices before the second ones
    chosen = jax.nn.one_hot(choices, experts, dtype=jnp.int32)
    chosen = jnp.where(wanted[..., None], chosen, 0)
    flat = chosen.reshape(-1, experts)
    place = ((jnp.cumsum(flat, 0) - flat) * flat).sum(-1)
    kept = wanted.reshape(-1) & (place < capacity)
    rows = flat.shape[0]
    # Who stands at each place; those without one are written past the end.
    slot = jnp.where(kept, choices.reshape(-1) * capacity + place, experts * capacity)
    who = jnp.full(experts * capacity, rows, jnp.int32)
    who = who.at[slot].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    gate = jnp.append(gates.reshape(-1), 0.0)[who]
    token = jnp.where(who < rows, who % max(n, 1), n)
    real = mask[:, None].astype(jnp.float32)
    count = jnp.maximum(real.sum(), 1)
    share = chosen[0].astype(jnp.float32).sum(0) / count
    balance = experts * (share * ((p * real).sum(0) / count)).sum()
    counts = jnp.where(kept[:, None], flat, 0).sum(0)
    total = wanted.sum().astype(jnp.int32)
    shape = (experts, capacity)
    tables = token.reshape(shape), gate.reshape(shape)
    return Routing(*tables, balance, counts, total - counts.sum(), total)


def _choices(p, key, router, threshold):
    """Experts (K, N), their gates and whether each is wanted, for K choices."""
    first = p.argmax(-1)
    best = p.max(-1)
    every = jnp.ones(first.shape, bool)
    if router == "top1_scale":
        return first[None], best[None], every[None]
    if router == "top1_st":
        return first[None], (best / jax.lax.stop_gradient(best))[None], every[None]
    others = jnp.where(jax.nn.one_hot(first, p.shape[-1], dtype=bool), -1.0, p)
    second, next_best = others.argmax(-1), others.max(-1)
    if key is not None:
        drawn = jax.random.uniform(fold(key, "second"), second.shape)
        every = drawn * threshold < next_best / (best + next_best)
    next_best = jnp.where(every, next_best, 0.0)
    total = best + next_best
    gates = jnp.stack([best / total, next_best / total])
    return jnp.stack([first, second]), gates, jnp.stack([jnp.ones_like(every), every])


def dispatch(x: jax.Array, routing: Routing) -> jax.Array:
    """Each expert's tokens: x (G, N, D) -> (E, G * C, D); empty places hold zeros.

    Example:
      >>> routing = route(jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool), capacity=2)
      >>> dispatch(jnp.array([[[3.0], [4.0]]]), routing)[..., 0].tolist()
      [[3.0, 4.0], [0.0, 0.0]]
    """
    groups, experts, places = routing.token.shape

    x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))  # what stands at an empty place
    taken = jax.vmap(lambda x, token: x[token])(x, routing.token).swapaxes(0, 1)
    return taken.reshape(experts, groups * places, x.shape[-1])


def combine(y: jax.Array, routing: Routing, tokens: int) -> jax.Array:
    """Sums what experts made of each token, times its gates: undoes `dispatch`.

    Args:
      y: (E, G * C, D).
      routing: as `dispatch` had it.
      tokens: N.

    Returns:
      (G, N, D); zeros for a token without a place.

    Example:
      >>> routing = route(jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool), capacity=1)
      >>> x = jnp.array([[[3.0], [4.0]]])
      >>> combine(dispatch(x, routing), routing, 2).tolist()
      [[[3.0], [0.0]]]
    """
    groups, experts, places = routing.token.shape
    y = y.reshape(experts, groups, places, y.shape[-1]).swapaxes(0, 1)
    y = y * routing.gate[..., None].astype(y.dtype)

    def one(y, token):
        out = jnp.zeros((tokens + 1, y.shape[-1]), y.dtype)
        return out.at[token].add(y)[:tokens]  # the last row is of empty places

    return jax.vmap(one)(y, routing.token)
