"""A training step whose arrays lie apart over the data axis, by stages of ZeRO."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from splitjax.core.factor import cast_floats
from splitjax.core.gradient import value_and_grad
from splitjax.core.tree import Tree
from splitjax.optim.apply import apply_updates
from splitjax.parallel.apart import GRADIENTS, PARAMETERS, STATE, apart, on_host
from splitjax.parallel.rules import RULES, Placed, Rule, place, place_like
from splitjax.parallel.scale import Scale

Loss = Callable[[Tree, Tree], jax.Array]


class State(NamedTuple):
    """What a training step changes.

    Attributes:
      params: as the model sees them.
      opt: of the optimizer.
      master: the parameters in float32 ("mixed"); otherwise None.
    """

    params: Tree
    opt: Any
    master: Tree


class Trainer(NamedTuple):
    """What `make_trainer` makes.

    Attributes:
      init: `params -> State`, laid on the mesh.
      step: `(State, batch) -> (State, loss)`, jitted; it uses up the state.
      gradients: `(params, batch) -> (loss, gradients)`, jitted, as a step has them.
      places: the shardings of a `State`.
      report: where each parameter lies (as `places.params`), and, of a ZeRO stage,
        whether the part of its arrays over "data" could not be made; see `rules.table`.
    """

    init: Callable[[Tree], State]
    step: Any
    gradients: Any
    places: State
    report: tuple[Placed, ...]


def make_trainer(
    loss: Loss,
    tx: optax.GradientTransformation,
    params: Tree,
    mesh: Mesh,
    scale: Scale,
    *,
    rules: Sequence[Rule] = RULES,
    stacked: str = "",
) -> Trainer:
    """A training step on a mesh, by the options.

    Every array of a ZeRO stage lies apart over "data", beside what `rules` say for the
    other axes, so that a device has 1/W of its bytes; see `apart`. What has no axis
    that W divides stays whole and is in the report.

    Args:
      loss: `(params, batch) -> scalar`, a mean over the rows of the batch.
      tx: the optimizer, of float32 gradients and parameters whatever the precision.
      params: the parameters or their specs, float32.
      mesh: of `scale.mesh`.
      scale: the options. `scale.checkpoint` is of the stages in `loss`: see
        `checkpointed`.
      rules: see `place`.
      stacked: see `place`.

    Raises:
      ValueError: for another mesh than that of the options; on use, for a batch whose
        rows "data" does not divide.

    Example:
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> scale = Scale(mesh="data=1", zero=1)
      >>> mesh = make_cloud_mesh(scale.mesh, devices=jax.devices()[:1])
      >>> params = {"wi": {"kernel": jnp.ones((2, 1))}}
      >>> def loss(params, x):
      ...     return jnp.square(x @ params["wi"]["kernel"]).mean()
      >>> trainer = make_trainer(loss, optax.sgd(0.25), params, mesh, scale)
      >>> state, value = trainer.step(trainer.init(params), jnp.ones((4, 2)))
      >>> float(value), state.params["wi"]["kernel"].tolist()
      (4.0, [[0.0], [0.0]])

    Reference: see `Scale`.
    Differs:
      an array lies apart along one of its axes, and whole where "data" divides none;
      the paper parts into equal pieces. Low precision is bfloat16 without a scale of
      the loss.
    """
    if dict(mesh.shape) != scale.sizes:
        raise ValueError(
            f"mesh {dict(mesh.shape)} for the options' {scale.mesh!r}: make it by "
            "make_cloud_mesh(scale.mesh)"
        )
    if scale.flat:
        tx = optax.flatten(tx)
    width = mesh.shape.get("data", 1)
    whole, lines = place(params, mesh, rules=rules, stacked=stacked)
    parted, report = apart(params, whole, lines, width)
    if not scale.zero:
        report = lines
    elif scale.zero < PARAMETERS:  # they are whole; of the others it is told
        pairs = zip(report, lines, strict=True)
        report = tuple(one._replace(spec=line.spec) for one, line in pairs)
    master = parted if scale.zero >= STATE else whole  # where an update is computed
    summed = parted if scale.zero >= GRADIENTS else whole  # where gradients lie
    places = State(
        parted if scale.zero >= PARAMETERS else whole,
        place_like(jax.eval_shape(tx.init, params), params, master, mesh),
        master if scale.precision == "mixed" else None,
    )
    home = jax.tree.map(on_host, places.opt) if scale.offload else places.opt
    rows = NamedSharding(mesh, PartitionSpec(*[a for a in ["data"] if width > 1]))

    def gradients(params, batch):
        def spread(leaf):
            if leaf.ndim < 1 or len(leaf) % width:
                raise ValueError(
                    f"a batch {leaf.shape} on data={width}: its rows must be a "
                    f"multiple of {width}"
                )
            return jax.lax.with_sharding_constraint(leaf, rows)

        value, grads = value_and_grad(loss)(params, jax.tree.map(spread, batch))
        return value, _laid(grads, summed)

    def step(state, batch):
        value, grads = gradients(state.params, batch)
        basis = state.params if state.master is None else state.master
        grads = cast_floats(grads, jnp.float32)
        basis = _laid(cast_floats(basis, jnp.float32), master)
        opt = state.opt
        if scale.offload:
            opt = jax.tree.map(jax.device_put, opt, places.opt)
        with jax.numpy_dtype_promotion("standard"):  # for Optax, as in algorithms.split
            updates, opt = tx.update(grads, opt, basis)
        basis = apply_updates(basis, _laid(updates, master))
        params = cast_floats(basis, scale.dtype)
        return State(params, opt, None if state.master is None else basis), value

    def init(params):
        basis = cast_floats(params, jnp.float32)
        opt = jax.jit(tx.init, out_shardings=places.opt)(basis)
        low = cast_floats(basis, scale.dtype)
        kept = basis if scale.precision == "mixed" else None
        made = State(low, opt, kept)
        # A copy: a step uses the state up, and `params` is the caller's.
        return jax.device_put(jax.tree.map(jnp.copy, made), places._replace(opt=home))

    everywhere = NamedSharding(mesh, PartitionSpec())
    return Trainer(
        init,
        jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(places._replace(opt=home), everywhere),
        ),
        jax.jit(gradients, out_shardings=(everywhere, summed)),
        places._replace(opt=home),
        report,
    )


def _laid(tree: Tree, shardings: Tree) -> Tree:
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)
