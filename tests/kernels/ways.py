"""The ways to run a kernel, and how far they may be apart."""

import jax
import jax.numpy as jnp
import numpy as np

# Odd, one row, one token, one column, and a third axis.
SHAPES = [(7, 33), (1, 48), (3, 1, 16), (5, 1)]
# Float32 sums in another order; bfloat16 has 8 bits.
CLOSE = {"float32": 1e-5, "bfloat16": 2e-2}
IMPLS = ["xla", "pallas"]


def normal(shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def assert_close(found, wanted, dtype="float32"):
    """Equal to the dtype's tolerance, beside the size of the largest value."""
    bound = CLOSE[str(jnp.dtype(dtype))]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        scale = max(1.0, np.abs(b).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound * scale)


def value_and_pull(function, *args):
    """The value of a function and its gradients, for a cotangent of normal numbers."""

    @jax.jit
    def run(*args):
        y, pull = jax.vjp(function, *args)
        return y, pull(normal(y.shape, 9, y.dtype))

    return run(*args)


def lowered(function, *args, platform):
    """The text of a program for a device that is not there."""
    traced = jax.jit(function).trace(*args)
    if platform == "tpu" or jax.__version_info__ < (0, 11):
        return traced.lower(lowering_platforms=(platform,)).as_text()
    # From 0.11 on a program for a GPU is lowered for one that is named.
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    device = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(function).trace(*args)
        return traced.lower(lowering_platforms=(platform,)).as_text()


def stored_bytes(function, *args, params=()):
    """Bytes of what a vjp keeps, without the arguments whose numbers `params` has."""

    def kept(*args):
        pull = jax.vjp(function, *args)[1]
        known = {
            id(leaf) for number in params for leaf in jax.tree.leaves(args[number])
        }
        return [leaf for leaf in jax.tree.leaves(pull) if id(leaf) not in known]

    return sum(a.size * a.dtype.itemsize for a in jax.eval_shape(kept, *args))
