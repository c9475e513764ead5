"""The hijacking attack, shown: an edge that learns from an honest cloud and others."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from splitjax.core.codec import Context, split_smooth
from splitjax.core.keys import fold
from splitjax.core.message import gradient_of
from splitjax.core.split import BACKWARD, FORWARD, Split
from splitjax.models import hijack as nets
from splitjax.privacy import fsha, scrutinizer, ssim
from splitjax.privacy.fsha import imitation
from splitjax.studies.fsha.options import Arm, Hijack


def play(hijack: Hijack, arm: Arm, seed: int) -> dict[str, Any]:
    """One run of one arm.

    Args:
      hijack: the options.
      arm: which cloud and which defense.
      seed: of everything.

    Returns:
      `curve` (the error of each hundredth of the run), `error` (the mean squared error
      of the last twentieth's reconstructions), `share` (over that of the mean picture),
      `ssim`, the detector's `gap` at the end, `gap_early` at batch 50 and `gap_least`
      from batch 10 on, `flagged` (the first batch that it flagged, or None), `seconds`,
      and `pictures`: some inputs above what was made of them. Of an honest cloud, which
      reconstructs nothing, the first three are None.
    """
    started = time.monotonic()
    (own, labels), (public, _) = (hijack.pictures(s) for s in ("train", "test"))
    key = jax.random.key(seed)
    classes = int(labels.max()) + 1
    split = hijack.split(arm, classes)
    smooth, _ = split_smooth(split.links[0].forward)
    size = min(hijack.batch_size, len(own), len(public))
    params, state = split.init(fold(key, "model"), own[:size])
    links = split.init_links(params, state, own[:size])
    code = jax.eval_shape(lambda p, s: _code(split, p, s, own[:size]), params, state)
    cloud = cloud_of(hijack, arm, split, code)
    watch = scrutinizer()
    edge_tx = optax.adam(hijack.edge_rate)

    def one(carry, number):
        params, state, opt, mind, seen, ends = carry
        at = fold(key, "step", number)
        rows = jax.random.randint(fold(at, "own"), (size,), 0, len(own))
        others = jax.random.randint(fold(at, "public"), (size,), 0, len(public))
        x, y = own[rows], labels[rows]
        visit = split.forward(0, params, state, x, links=ends, key=fold(at, "edge"))
        ctx = Context(fold(at, "codec"))
        first = ends[0]
        message, tx = split.outlet(0, FORWARD, visit.out, first[FORWARD]["tx"], ctx)
        m, rx = split.inlet(0, FORWARD, message, first[FORWARD]["rx"])
        g, mind, guess = cloud(mind, m, first["smooth"], public[others], y, at)
        back = split.outlet(0, BACKWARD, g, first[BACKWARD]["tx"], ctx)[0]
        g, _ = split.inlet(0, BACKWARD, back, first[BACKWARD]["rx"])
        seen, verdict = watch.update(seen, jax.tree.leaves(g)[0], y)
        grads, _ = split.pull(0, params, visit.residuals, g)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = edge_tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        ends = ({**first, FORWARD: {"tx": tx, "rx": rx}},)
        out = (jnp.square(guess - x).mean(), verdict["gap"], verdict["hijacked"])
        return (params, visit.state, opt, mind, seen, ends), out

    @jax.jit
    def several(carry, numbers):
        return jax.lax.scan(one, carry, numbers)

    mind = cloud.init(fold(key, "cloud"), params[1], state[1], own[:size])
    carry = (params[0], state[0], edge_tx.init(params[0]), mind, watch.init(), links)
    found = []
    each = max(1, hijack.steps // 100)
    for start in range(0, hijack.steps - each + 1, each):
        carry, out = several(carry, start + jnp.arange(each))
        found.append(jax.device_get(out))
    error, gap, flag = (np.concatenate(part) for part in zip(*found, strict=True))
    shown = own[:size]
    guess = cloud.show(carry[3], _received(split, smooth, carry, shown, key), shown)
    last = float(error[-max(1, len(error) // 20) :].mean())
    mean = float(jnp.square(own - own.mean(0, keepdims=True)).mean())
    seen: dict[str, Any] = {name: None for name in ("error", "share", "ssim")}
    if arm.cloud != "honest":
        like = round(float(_like(shown, guess)), 4)
        seen = {"error": round(last, 5), "share": round(last / mean, 4), "ssim": like}
    return {
        **seen,
        "curve": error[: len(found) * each].reshape(-1, each).mean(1).round(5).tolist(),
        "gap": round(float(gap[-1]), 4),
        "gap_early": round(float(gap[min(50, len(gap) - 1)]), 4),
        "gap_least": round(float(gap[9:].min(initial=2.0)), 4),
        "flagged": int(flag.argmax()) if flag.any() else None,
        "seconds": round(time.monotonic() - started, 1),
        "pictures": np.stack([np.asarray(shown[:8]), np.asarray(guess[:8])]),
    }


def _code(split: Split, params, state, x):
    first = split.cut.segments[0]
    return first.apply(params[0], state[0], x, key=None, train=True)[0]


def _received(split, smooth, carry, x, key):
    """The codes of a batch, as the cloud decodes them."""
    params, state, *_, ends = carry

    @jax.jit
    def run(params, state, ends):
        visit = split.forward(0, params, state, x, links=ends, key=fold(key, "last"))
        ctx, both = Context(fold(key, "last")), ends[0][FORWARD]
        message, _ = split.outlet(0, FORWARD, visit.out, both["tx"], ctx)
        m, _ = split.inlet(0, FORWARD, message, both["rx"])
        return smooth.decode(m, ends[0]["smooth"])[0]

    return run(params, state, ends)


def _like(x, guess):
    window = min(7, *x.shape[1:3])
    run = jax.jit(lambda a, b: ssim(a, b, data_range=2.0, window=window).mean())
    return run(x, guess)


@dataclasses.dataclass(frozen=True)
class Cloud:
    """What sits at the other end.

    Attributes:
      init: `(key, params, state, x) -> mind`.
      answer: `(mind, m, constants, public, y, key) -> (gradient, mind, guess)`.
      show: `(mind, z, x) -> guess`; x is for its shape alone.
    """

    init: Callable[..., Any]
    answer: Callable[..., Any]
    show: Callable[..., Any]

    def __call__(self, *args):
        """See `answer`."""
        return self.answer(*args)


def cloud_of(hijack: Hijack, arm: Arm, split: Split, code: Any) -> Cloud:
    """The cloud of an arm.

    Args:
      hijack: the options.
      arm: which.
      split: the cut model, for an honest cloud.
      code: the spec of the edge's output.
    """
    smooth, _ = split_smooth(split.links[0].forward)
    blank = -jnp.ones((1, hijack.side, hijack.side, hijack.channels))
    if arm.cloud == "honest":
        tx = optax.adam(hijack.edge_rate)

        def learn(mind, m, constants, public, y, key):
            params, state, opt = mind
            target = {"y": y, "n_valid": jnp.int32(len(y))}
            ends = ({"smooth": constants},)
            how = {"links": ends, "key": key, "target": target}
            visit = split.forward(1, params, state, m, **how)
            grads, g = split.pull(1, params, visit.residuals, None)
            with jax.numpy_dtype_promotion("standard"):
                updates, opt = tx.update(grads, opt, params)
            mind = optax.apply_updates(params, updates), visit.state, opt
            return gradient_of(g, m), mind, jnp.broadcast_to(blank, public.shape)

        return Cloud(
            lambda key, params, state, x: (params, state, tx.init(params)),
            learn,
            lambda mind, z, x: jnp.broadcast_to(blank, x.shape),
        )
    sizes = hijack.channels, hijack.width, hijack.level
    attack = fsha(
        nets.hijack_pilot(hijack.width, hijack.level),
        nets.hijack_decoder(*sizes),
        nets.hijack_critic(hijack.width, hijack.blocks, dense=hijack.level == 0),
        penalty=hijack.penalty,
        learning_rate=hijack.pilot_rate,
        critic_learning_rate=hijack.critic_rate,
        gain=arm.gain,
        adaptive=imitation(split.links[0].forward, code) if arm.adaptive else "",
    )

    def answer(mind, m, constants, public, y, key):
        del y  # never read
        z, pull = jax.vjp(lambda m: smooth.decode(m, constants)[0], m)
        g, mind, guess = attack.step(mind, z, public, fold(key, "attack"))
        g = jnp.zeros_like(g) if arm.cloud == "zero" else g
        return gradient_of(pull(g)[0], m), mind, guess

    return Cloud(
        lambda key, params, state, x: attack.init(key, code, x),
        answer,
        lambda mind, z, x: jax.jit(attack.reconstruct)(mind, z),
    )
