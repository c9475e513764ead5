"""What a `Split` sends back: the gradient of a message, not of what it stands for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.codecs import ragged
from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import Stage, join
from splitjax.core.tree import spec_of


def close(a, b):
    def one(a, b):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)

    jax.tree.map(one, a, b)


def test_a_message_of_integers_and_padding(key):
    """Ids and a mask cross; the gradient has the rows of the tokens alone."""
    mask = jnp.arange(5)[None] < jnp.array([5, 2, 0])[:, None]
    x = {"h": jax.random.normal(key, (3, 5, 4)), "mask": mask}

    def stage(name):
        def apply(params, state, x, *, key, train):
            h = jnp.where(x["mask"][..., None], jnp.tanh(x["h"] @ params["w"]), 0.0)
            return {**x, "h": h}, state, {}

        return Stage(
            name, lambda k, s: ({"w": jax.random.normal(k, (4, 4))}, {}), apply
        )

    stages = [stage("a"), stage("b")]
    seen = []

    def encode(g, state, ctx):
        seen.append(g)
        return g, state

    back = dataclasses.replace(chain(), encode=encode)

    def total(y, target):
        return jnp.sum(y["h"] * target), {}

    split = Split(cut(stages, after="a"), (Link(ragged(), back),), total)
    params, state = split.init(key, spec_of(x))
    links = split.init_links(params, state, spec_of(x))
    target = jnp.cos(jnp.arange(60.0)).reshape(3, 5, 4)
    (value, _), grads = split.value_and_grad(params, state, links, x, target)
    model = join(stages)

    def whole(params):
        return total(
            model.apply(params, state[0] | state[1], x, key=None, train=True)[0], target
        )[0]

    want, wanted = jax.value_and_grad(whole)(split.cut.merge(params))
    close((value, split.cut.merge(grads)), (want, wanted))
    [gradient] = seen
    assert int(gradient.tree["h"].used) == 7 and gradient.lengths is None
    assert not gradient.tree["h"].buffer[7:].any()
