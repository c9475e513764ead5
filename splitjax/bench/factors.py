"""What low rank costs: a projection, its share of a run, and a product in a layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from splitjax.core.factor import dot
from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.factors.product import rank_keeping, svd
from splitjax.metrics.flops import flops
from splitjax.metrics.loss import cross_entropy
from splitjax.models.resnet import CONFIGS, resnet
from splitjax.optim.energy import energy_project
from splitjax.optim.lrpet import lrpet
from splitjax.optim.ranks import at_ratio
from splitjax.train.timing import Part, Row, Timed, rows

# Seconds of the authors' projection (torch's SVD) of d x d, rank d/4, on a like core.
PEERS = {96: 0.011, 192: 0.022, 384: 0.125}
PEER_BOUND = 0.2
SVD_BOUNDS = {"square": 0.8, "3x3": 0.45}
EVERY = 250  # steps between two projections, as on ImageNet
SHARE = 0.02  # of the time of a training run
SIZE = 32  # pixels
DIMS = (384, 1536)  # MiniLM's feed-forward kernel
SHARES = (0.3, 0.5, 0.7)  # of its numbers
TOKENS = (16, 128, 1024)
DOT_BOUND = 1.3
CONVS = ".*/(conv|conv_.|skip_conv)/kernel"


def by_svd(w: jax.Array, rank: int) -> jax.Array:
    """The projection with energy transfer as one writes it down, by a full SVD.

    Example:
      >>> by_svd(jnp.diag(jnp.array([4.0, 3.0])), 1).round(3).tolist()
      [[5.0, 0.0], [0.0, 0.0]]
    """
    u, s, v = jnp.linalg.svd(w, full_matrices=False)
    energy = jnp.square(s)
    alpha = energy.sum() / energy[:rank].sum()
    return (u[:, :rank] * (jnp.sqrt(alpha) * s[:rank])[None]) @ v[:rank]


def projection(timed: Timed) -> list[Row]:
    """Rows of d x d matrices and of 3x3 convolutions of d channels, rank d/4."""
    made: list[Row] = []
    for width, peer in PEERS.items():
        rank = width // 4
        for shape, height in (("square", width), ("3x3", 9 * width)):
            w = jax.random.normal(jax.random.key(width), (height, width))
            ours = jax.jit(lambda w, r=rank: energy_project(w, r).matrix)
            plain = jax.jit(lambda w, r=rank: by_svd(w, r))
            np.testing.assert_allclose(
                jnp.square(ours(w)).sum(), jnp.square(plain(w)).sum(), rtol=1e-5
            )
            name, svd = f"projection, d={width}, {shape}", f"SVD, d={width}, {shape}"
            steps = {name: lambda f=ours, w=w: f(w), svd: lambda f=plain, w=w: f(w)}
            found = rows(timed(steps), svd, {name: SVD_BOUNDS[shape]})
            made += found
            if shape == "square":
                against = {
                    "reference": f"{1e3 * peer:.0f} ms, torch SVD (PEERS)",
                    "ratio": found[0]["value"] / peer,
                    "bound": PEER_BOUND,
                }
                made.append({**found[0], **against})
    return made


def share(timed: Timed) -> list[Row]:
    """The part of a run's time that projections take: ResNet-20, batches of 64."""
    model = join(resnet(CONFIGS["resnet20"], 10))
    x = jax.random.normal(jax.random.key(1), (64, SIZE, SIZE, 3))
    target = {"y": jnp.arange(64) % 10, "n_valid": jnp.int32(64)}
    params, state = model.init(jax.random.key(0), spec_of(x))
    select = at_ratio(CONVS, 0.57, layout="conv")
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), lrpet(select, every=EVERY))

    @jax.jit
    def step(params, opt, number):
        def loss(params):
            y, _, _ = model.apply(params, state, x, key=None, train=True)
            return cross_entropy(y, target)[0]

        grads = jax.grad(loss)(params)
        updates, opt = tx.update(grads, opt, params, step=number)
        return optax.apply_updates(params, updates), opt

    opt = tx.init(params)
    steps = {
        "ResNet-20, a step": lambda: step(params, opt, 0),
        "ResNet-20, a step and a projection": lambda: step(params, opt, EVERY - 1),
    }
    made = rows(timed(steps), "ResNet-20, a step", {})
    part = (made[1]["ratio"] - 1) / EVERY
    made.append(
        {
            "name": f"projections, one in {EVERY} steps",
            "value": 100 * part,
            "unit": "%",
            "reference": f"{100 * SHARE:.0f} % of a run",
            "ratio": part / SHARE,
            "bound": 1.0,
        }
    )
    return made


def product_dot(timed: Timed) -> list[Row]:
    """Rows of `dot` with a product, against what its operations leave of the dense one.

    The ratio is that of the times over that of the operations: 1 where a product is as
    fast for its size as the dense kernel is for its own.
    """
    made: list[Row] = []
    kernel = jax.random.normal(jax.random.key(0), DIMS)
    call = jax.jit(dot)
    for tokens in TOKENS:
        x = jax.random.normal(jax.random.key(tokens), (tokens, DIMS[0]))
        whole = flops(dot, spec_of(kernel), spec_of(x))
        reference = f"dense dot, {tokens} tokens"
        steps = {reference: functools.partial(call, kernel, x)}
        parts: dict[str, float] = {}
        for share in SHARES:
            factor = svd(kernel, rank_keeping(share, DIMS))
            name = f"dot at {share:.0%} of the numbers, {tokens} tokens"
            steps[name] = functools.partial(call, factor, x)
            parts[name] = flops(dot, spec_of(factor), spec_of(x)) / whole
        [dense, *others] = rows(timed(steps, before=1), reference, {})
        made.append(dense)
        for row in others:
            part = parts[row["name"]]
            told = {"reference": f"{part:.3f} of the dense one's time (its FLOPs)"}
            told |= {"ratio": row["ratio"] / part, "bound": DOT_BOUND}
            made.append({**row, **told})
    return made


# By the name that --only chooses.
PARTS: dict[str, Part] = {
    "projection": projection,
    "share": share,
    "dot": product_dot,
}
