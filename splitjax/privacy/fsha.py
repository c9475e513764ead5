"""The feature-space hijacking attack: a cloud that trains the edge for its own ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from splitjax.core.codec import Codec, Context, split_smooth
from splitjax.core.keys import fold
from splitjax.core.stage import Stage, output_spec
from splitjax.core.straight_through import ste_sign
from splitjax.core.tree import Tree, spec_of

Imitate = Callable[[jax.Array, jax.Array], jax.Array]


class Hijacker(NamedTuple):
    """The attack as pure functions; see `fsha`.

    Attributes:
      init: `(key, z, x) -> state`, for a message and a public batch, arrays or specs.
      step: `(state, z_private, x_public, key) -> (g, state, reconstruction)`: what is
        sent to the edge instead of its loss's gradient, and what the edge's inputs are
        taken for (before this step's learning).
      reconstruct: `(state, z) -> x'`.
    """

    init: Callable[..., Tree]
    step: Callable[..., tuple[jax.Array, Tree, jax.Array]]
    reconstruct: Callable[[Tree, jax.Array], jax.Array]


def fsha(
    pilot: Stage,
    decoder: Stage,
    critic: Stage,
    *,
    penalty: float = 500.0,
    learning_rate: float = 1e-5,
    critic_learning_rate: float = 1e-4,
    critic_steps: int = 1,
    gain: float = 1.0,
    adaptive: str | Imitate = "",
) -> Hijacker:
    """A malicious cloud that makes the edge's half an encoder which it can decode.

    On public data x it trains an autoencoder `x' = decoder(pilot(x))`; a critic D tells
    the pilot's codes from the edge's messages z; and the edge is sent the gradient by
    which D takes its messages for codes of the pilot:

        L_critic  = E D(pilot(x)) - E D(z) + penalty E (|dD/dz_mix| - 1)^2
        L_pilot   = mean (x - decoder(pilot(x)))^2
        L_edge    = gain E D(z)

    where z_mix lies at random on the line between a message and a code. Labels are
    never read.

    Args:
      pilot: x to a code of a message's shape.
      decoder: a code to x.
      critic: a code to (B, 1).
      penalty: of the critic's gradient.
      learning_rate: Adam's for pilot and decoder.
      critic_learning_rate: Adam's for the critic.
      critic_steps: of the critic, in one step.
      gain: of what is sent: against an edge that has a loss of its own.
      adaptive: what the attacker knows of the edge's defense. "": nothing. "binary":
        the pilot's codes are signs too, with the gradient 1[|u| <= 1] straight through.
        A function `(key, code) -> code` imitates any other channel (noise, say).

    Returns:
      Functions for `jax.jit`.

    Raises:
      ValueError: for another word in `adaptive`; on init, when the pilot's code is not
        of a message's shape, or a network has state.

    Example: `python -m experiments.fsha --config=configs/fsha_digits.py`.

    Reference:
      D. Pasquini, G. Ateniese, M. Bernaschi, "Unleashing the Tiger: Inference Attacks
      on Split Learning", 2020, arXiv:2012.02670, and the authors' code (the signs of
      the losses, penalty and rates).

    Differs:
      The gradient's norm is over all axes of a code (the code leaves the channels out)
      with 1e-12 under the root; gain, imitation and critic_steps are ours.
    """
    if isinstance(adaptive, str) and adaptive not in ("", "binary"):
        raise ValueError(
            f"fsha(adaptive={adaptive!r}): '', 'binary', or a function (key, code)"
        )
    imitate: Imitate = adaptive if callable(adaptive) else lambda key, code: code
    if adaptive == "binary":
        imitate = lambda key, code: ste_sign(code)  # noqa: E731
    nets = {"pilot": pilot, "decoder": decoder, "critic": critic}
    tx = optax.adam(learning_rate)
    critic_tx = optax.adam(critic_learning_rate)

    def run(name, params, x, key=None):
        net = nets[name]
        return net.apply(params[name], {}, x, key=fold(key, name), train=True)[0]

    def init(key, z, x):
        z, x = spec_of(z), spec_of(x)
        params = {}
        for name, spec in (("pilot", x), ("decoder", z), ("critic", z)):
            params[name], state = nets[name].init(fold(key, name), spec)
            if jax.tree.leaves(state):
                raise ValueError(
                    f"fsha's {name} has state: take one without statistics"
                )
        code = output_spec(pilot, params["pilot"], {}, x)
        if code.shape[1:] != z.shape[1:]:
            raise ValueError(
                f"the pilot's code is {code.shape[1:]} and a message {z.shape[1:]}: "
                "they must be alike"
            )
        own = {name: params[name] for name in ("pilot", "decoder")}
        return {
            "params": params,
            "opt": tx.init(own),
            "critic_opt": critic_tx.init(params["critic"]),
        }

    def critic_loss(params, z, code, key):
        shape = (z.shape[0],) + (1,) * (z.ndim - 1)
        mix = jax.random.uniform(fold(key, "mix"), shape)
        between = mix * z + (1 - mix) * code
        slope = jax.grad(lambda a: run("critic", params, a).sum())(between)
        norm = jnp.sqrt(jnp.sum(slope * slope, tuple(range(1, z.ndim))) + 1e-12)
        return (
            run("critic", params, code).mean()
            - run("critic", params, z).mean()
            + penalty * jnp.square(norm - 1).mean()
        )

    def apply(tx, grads, opt, params):
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = tx.update(grads, opt, params)
        new: Any = optax.apply_updates(params, updates)
        return new, opt

    def step(state, z_private, x_public, key):
        params = state["params"]
        z = z_private.astype(jnp.float32)
        guess = run("decoder", params, z)
        g = jax.grad(lambda a: gain * run("critic", params, a).mean())(z)

        def autoencode(own):
            code = imitate(fold(key, "imitate"), run("pilot", own, x_public))
            return jnp.square(run("decoder", own, code) - x_public).mean(), code

        own = {name: params[name] for name in ("pilot", "decoder")}
        grads, code = jax.grad(autoencode, has_aux=True)(own)
        own, opt = apply(tx, grads, state["opt"], own)
        judge, judge_opt = params["critic"], state["critic_opt"]
        for number in range(critic_steps):
            grads = jax.grad(
                lambda p, k: critic_loss({**params, "critic": p}, z, code, k)
            )(judge, fold(key, "critic", number))
            judge, judge_opt = apply(critic_tx, grads, judge_opt, judge)
        state = {
            "params": {**own, "critic": judge},
            "opt": opt,
            "critic_opt": judge_opt,
        }
        return g.astype(z_private.dtype), state, guess

    def reconstruct(state, z):
        return run("decoder", state["params"], z.astype(jnp.float32))

    return Hijacker(init, step, reconstruct)


def imitation(codec: Codec, code: Tree) -> Imitate:
    """What a codec does to a code, for an attacker that trains its pilot behind it.

    The smooth codecs are run with their own gradients; through the rough ones it passes
    straight.

    Args:
      codec: of the link's forward direction.
      code: the spec of one batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from splitjax.core.codec import chain
      >>> code = jnp.ones(2)
      >>> imitation(chain(), code)(jax.random.key(0), code).tolist()
      [1.0, 1.0]
    """
    smooth, rough = split_smooth(codec)
    spec = spec_of(code)

    def imitate(key, code):
        ctx = Context(key)
        constants = smooth.init(spec)
        m, _ = smooth.encode(code, constants, ctx)
        own = rough.init(spec_of(m))
        message, _ = rough.encode(jax.lax.stop_gradient(m), own, ctx)
        arrived, _ = rough.decode(message, own)
        m = jax.tree.map(lambda a, b: a + jax.lax.stop_gradient(b - a), m, arrived)
        return smooth.decode(m, constants)[0]

    return imitate
