import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.residuals import strip
from splitjax.core.stage import Stage, join, repeat
from splitjax.parallel.scale import Scale, checkpointed

D, ROWS = 8, 4


def layer(name: str) -> Stage:
    """x -> sin(x w) + x: it keeps x, x w, and no more."""

    def init(key, spec):
        return {"w": jax.random.normal(key, (D, D)) / 3}, {}

    def apply(params, state, x, *, key, train):
        return jnp.sin(x @ params["w"]) + x, state, {"mean": x.mean()}

    return Stage(name, init, apply)


MODEL = join([layer("a"), layer("b"), layer("c"), repeat(layer("stack"), 3)])
X = jax.random.normal(jax.random.key(1), (ROWS, D))
PARAMS, STATE = MODEL.init(jax.random.key(0), X)


def run(stage):
    def loss(params):
        y, _, aux = stage.apply(params, STATE, X, key=None, train=False)
        return y.sum() + aux["a"]["mean"]

    return loss


def kept(scale: Scale) -> int:
    """Numbers that the backward pass keeps, in arrays of the batch."""

    def residuals(params):
        _, pull = jax.vjp(run(checkpointed(MODEL, scale)), params)
        return strip(pull, params).leaves

    leaves = jax.tree.leaves(jax.eval_shape(residuals, PARAMS))
    return sum(leaf.size for leaf in leaves if leaf.shape[-2:] == (ROWS, D))


SCALES = {
    "none": Scale(),
    "dots": Scale(checkpoint="dots"),
    "full": Scale(checkpoint="full"),
    "names": Scale(checkpoint="names", names=("b", "stack")),
    "offload": Scale(checkpoint="offload", names=("a", "b")),
}


@pytest.mark.parametrize("name", list(SCALES)[1:])
def test_the_gradient_is_the_same(name):
    grad = jax.jit(jax.grad(run(checkpointed(MODEL, SCALES[name]))))(PARAMS)
    want = jax.jit(jax.grad(run(MODEL)))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grad, want)


def test_what_is_kept_falls_by_what_is_named():
    sizes = {name: kept(scale) for name, scale in SCALES.items()}
    assert sizes["full"] < sizes["dots"] <= sizes["none"]
    one = ROWS * D
    # The inputs of six layers; with products one more each.
    assert sizes["full"] == 6 * one and sizes["dots"] == 12 * one
    # The output of "b" and those of the three blocks of the stack, and the input.
    assert sizes["names"] == (1 + 1 + 3) * one


@pytest.mark.parametrize("name", ["names", "offload"])
def test_names_hold_within_another_model(name):
    model = join([checkpointed(MODEL, SCALES[name])])
    parts = {"model": PARAMS}, {"model": STATE}
    jaxpr = jax.make_jaxpr(lambda x: model.apply(*parts, x, key=None, train=False)[0])
    found = [e.params["policy"] for e in jaxpr(X).eqns if "policy" in e.params]
    assert len(found) == 1 and found[0] is not None


def test_g_a_name_that_no_stage_has():
    with pytest.raises(ValueError, match=r"names has 'd'.*a, b, c, stack"):
        checkpointed(MODEL, Scale(checkpoint="names", names=("d",)))
