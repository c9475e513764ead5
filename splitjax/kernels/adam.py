"""Adam, each leaf in one pass."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from splitjax.kernels.kernel import Kernel, check
from splitjax.kernels.tile import Tile


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    impl: str = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Adam, with a weight decay that is not part of the gradient.

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
        u = -rate (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

    Moments are float32, whatever the leaf is. To a program the leaves are many small
    ones: `optim.flat.flat_by_dtype` makes one of them.

    Args:
      learning_rate: a number above 0, or a schedule.
      b1: of the first moment, from 0 to less than 1.
      b2: of the second, likewise.
      eps: added to the root.
      weight_decay: of all leaves; 0 or more.
      impl: see `kernel.Kernel`.

    Returns:
      A transformation whose state is optax's `ScaleByAdamState`, and which needs params
      where it decays. Updates have the dtype of their gradients.

    Raises:
      ValueError: for numbers out of range; on update, without params.

    Example:
      >>> tx, p = adam(0.1), {"w": jnp.ones(2)}
      >>> updates, _ = tx.update({"w": jnp.array([3.0, -4.0])}, tx.init(p), p)
      >>> updates["w"].round(3).tolist()
      [-0.10000000149011612, 0.10000000149011612]

    Reference:
      D. P. Kingma, J. Ba, Adam, 2014 (arXiv:1412.6980), algorithm 1; I. Loshchilov, F.
      Hutter, Decoupled Weight Decay Regularization, 2017 (arXiv:1711.05101), algorithm
      2; Wang et al., LightSeq2, 2022 (arXiv:2110.05722), on the trainer.

    Differs:
      nothing from optax's `adamw`, but for the order of operations. LightSeq's loss
      scale is not here.
    """
    if not (0 <= b1 < 1 and 0 <= b2 < 1 and eps > 0 and weight_decay >= 0):
        raise ValueError(
            f"adam({b1=}, {b2=}, {eps=}, {weight_decay=}): expected moments from 0 to "
            "less than 1, an eps above 0 and a decay of 0 or more"
        )
    if not callable(learning_rate) and not learning_rate > 0:
        raise ValueError(f"adam(learning_rate={learning_rate}): it must be above 0")
    check(impl)
    static = {"b1": b1, "b2": b2, "eps": eps, "decay": weight_decay}

    def init(params):
        def zeros():
            return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)

        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(updates, state, params=None, **extra):
        del extra
        if weight_decay and params is None:
            raise ValueError("adam with a decay needs params: tx.update(g, state, p)")
        rate: Any = learning_rate
        rate = rate(state.count) if callable(rate) else rate
        count = optax.safe_increment(state.count)
        t = jnp.asarray(count, jnp.float32)
        numbers = (jnp.float32(rate), 1 / (1 - b1**t), 1 / (1 - b2**t))

        def leaf(g, m, v, p):
            shape = g.shape
            arrays = [a.reshape(a.shape or (1,)) for a in (g, m, v, p)]
            dtypes = (g.dtype, jnp.float32, jnp.float32)
            made = _ADAM(*arrays, *numbers, dtypes=dtypes, impl=impl, **static)
            return tuple(new.reshape(shape) for new in made)

        # Without a decay the parameters are not read; gradients stand in their place.
        others = updates if params is None or not weight_decay else params
        grads, treedef = jax.tree.flatten(updates)
        more = map(treedef.flatten_up_to, (state.mu, state.nu, others))
        made = [leaf(*arrays) for arrays in zip(grads, *more, strict=True)]
        new, mu, nu = (treedef.unflatten([row[i] for row in made]) for i in range(3))
        return new, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _step(tile: Tile, g, m, v, p, rate, first, second, *, b1, b2, eps, decay):
    g = g.astype(jnp.float32)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    u = m * first / (jnp.sqrt(v * second) + eps)
    if decay:
        u = u + decay * p.astype(jnp.float32)
    return -rate * u, m, v


_ADAM = Kernel("adam", _step, ("each",) * 4 + ("one",) * 3, ("each",) * 3, parted=True)
