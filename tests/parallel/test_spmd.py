import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.keys import fold
from splitjax.core.residuals import strip
from splitjax.core.stage import Stage, repeat, with_loss
from splitjax.core.tree import flat
from splitjax.metrics.collectives import count_collectives
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.spmd import pipelined
from tests.parallel import lattice
from tests.parallel.jobs import job

D = 4


def close(found, want, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, want)


@pytest.fixture(scope="module")
def alone():
    """One device: losses of some steps, the first gradient, the last parameters."""
    params, state, opt = lattice.start()
    program = jax.jit(lattice.step(lattice.model(), state))
    return lambda steps: lattice.train(program, params, opt, lattice.batch(), steps)


def check_mesh(text, alone, steps):
    params, state, opt = lattice.start()
    mesh = make_cloud_mesh(text)
    run = lattice.step(lattice.model(mesh), state)
    program, args = lattice.on_mesh(mesh, run, params, opt, lattice.batch())
    program = program.lower(*args).compile()  # once: its text is read, too
    losses, grads, last = lattice.train(program, *args, steps)
    want_losses, want_grads, want_last = alone(steps)
    close(losses[0], want_losses[0], 1e-6)
    close(grads, want_grads, 1e-6)
    close(losses, want_losses, 1e-5)
    close(last, want_last, 1e-5)
    return program, args, grads


def test_f1_two_by_two_by_two_is_one_device(alone):
    """The tied table's gradient is that of both its uses, too."""
    program, args, grads = check_mesh("data=2,pipe=2,tensor=2", alone, 5)
    kernel = grads["block"]["layer_0/ffn"]["wi"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 8)  # of (4, 16, 16)
    sent = count_collectives(program)
    # Microbatches go down the pipe, and none is sent to another row of the mesh.
    hops = [one for one in sent if one.op == "collective-permute"]
    down, back = ((0, 2), (1, 3), (4, 6), (5, 7)), ((2, 0), (3, 1), (6, 4), (7, 5))
    assert {one.groups for one in hops} == {down, back}
    assert {one.op for one in sent} == {"collective-permute", "all-reduce"}
    # No number in a block is no number in the loss, wherever the block is.
    for block in (0, 3):
        value = program(lattice.spoilt(args[0], block), *args[1:])[2]
        assert np.isnan([shard.data for shard in value.addressable_shards]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "data=1,pipe=4,tensor=2",
        "data=4,pipe=2,tensor=1",
        "data=8,pipe=1,tensor=1",
    ],
)
def test_f1_other_meshes_are_one_device(text, alone):
    check_mesh(text, alone, 5)


# A block that draws, that has a loss, and whose derivative at zero is no number.


def noisy() -> Stage:
    def init(key, spec):
        return {"w": jax.random.normal(key, (D, D)) / 2}, {}

    def apply(params, state, x, *, key, train):
        h = x["h"] @ params["w"]
        h = h / jnp.sqrt(jnp.square(h).sum(-1, keepdims=True))  # 0 / 0 at 0
        if train:
            h = jnp.where(jax.random.bernoulli(fold(key, "drop"), 0.5, h.shape), h, 0)
        return {**x, "h": h}, state, {"loss": jnp.square(h).mean(), "size": h.mean()}

    return Stage("noisy", init, apply)


ROWS = {"h": jax.random.normal(jax.random.key(5), (8, D)), "n": jnp.arange(8)}
STACK = repeat(noisy(), 4)
PARAMS, STATE = STACK.init(jax.random.key(0), ROWS)


def on_pipe(p, n, **kwargs):
    mesh = make_cloud_mesh(f"pipe={p}", devices=jax.devices()[:p])
    return pipelined(STACK, mesh, microbatches=n, **kwargs)


def applied(stage, *, key=None):
    def run(params):
        out = stage.apply(params, STATE, ROWS, key=key, train=key is not None)
        return out[0], out[2]

    return run


def test_g_dropout_does_not_depend_on_the_number_of_places():
    """It is of (microbatch, block), as a loop over both draws it."""
    key, n = jax.random.key(7), 4

    @jax.jit
    def one(params, x, micro, block):
        own = fold(key, micro, block)
        return STACK.block.apply(params, {}, x, key=own, train=True)[0]

    want = np.zeros((8, D))
    for micro in range(n):
        x = jax.tree.map(lambda a, i=micro: a[i::n], ROWS)
        for block in range(4):
            x = one(jax.tree.map(lambda a, i=block: a[i], PARAMS), x, micro, block)
        want[micro::n] = x["h"]
    assert np.isfinite(want).all(-1).sum() > 2  # a row that is all dropped is 0 / 0
    for p in (1, 2):
        y, _ = jax.jit(applied(on_pipe(p, n), key=key))(PARAMS)
        close(y["h"], want, 1e-6)
        assert (y["n"] == ROWS["n"]).all()  # integers go along


def test_losses_are_means_over_microbatches_and_places_idle_on_real_rows():
    def loss(stage):
        def run(params):
            y, aux = applied(stage)(params)
            return y["h"][:, 0].sum() + aux["loss"], aux

        return jax.jit(jax.value_and_grad(run, has_aux=True))

    (value, aux), grads = loss(on_pipe(2, 4))(PARAMS)
    (want, want_aux), want_grads = loss(STACK)(PARAMS)
    close((value, aux, grads), (want, want_aux, want_grads), 1e-6)
    assert aux["size"].shape == (4,)  # one for each block, as a stack has it


def test_f7_a_policy_saves_what_it_names():
    def kept(policy):
        def run(params):
            _, pull = jax.vjp(lambda p: applied(stage)(p)[0]["h"], params)
            return strip(pull, params).leaves

        stage = on_pipe(2, 4, policy=policy)
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(run, PARAMS)))

    def grad(policy):
        stage = on_pipe(2, 4, policy=policy)
        run = jax.value_and_grad(lambda p: applied(stage)(p)[0]["h"].sum())
        return jax.jit(run)(PARAMS)

    all_of_it = jax.checkpoint_policies.everything_saveable
    products = jax.checkpoint_policies.dots_saveable
    assert kept(None) < kept(products) < kept(all_of_it)
    # The products of 2 blocks at 2 places in 5 ticks of 2 rows.
    assert kept(products) - kept(None) == 2 * 2 * 5 * 2 * D
    close(grad(None), grad(all_of_it), 1e-6)


def test_g_what_cannot_be_a_pipeline():
    flat = make_cloud_mesh("data=8")
    with pytest.raises(ValueError, match="no axis 'pipe'.* as in 'data=2,pipe=4'"):
        pipelined(STACK, flat, microbatches=2)
    with pytest.raises(ValueError, match=r"4 blocks of 'noisy' on pipe=8.*mpmd"):
        pipelined(STACK, make_cloud_mesh("pipe=8"), microbatches=2)
    wrapped = with_loss(STACK, lambda x, y: jnp.float32(1))
    with pytest.raises(ValueError, match=r"'noisy' is no .*repeat.* wrap the block"):
        pipelined(wrapped, flat, microbatches=2)
    with pytest.raises(ValueError, match="one of .* for all places"):
        on_pipe(2, 4, policy=[None, jax.checkpoint_policies.dots_saveable])
    with pytest.raises(ValueError, match="microbatches=0"):
        on_pipe(2, 0)
    mesh = make_cloud_mesh("data=4,pipe=2")
    stage = pipelined(STACK, mesh, microbatches=4)
    with pytest.raises(ValueError, match="4 microbatches on data=4.*a multiple of 16"):
        jax.eval_shape(applied(stage), PARAMS)
    norm = Stage("norm", lambda key, spec: ({}, {"mean": jnp.zeros(2)}), noisy().apply)
    stage = pipelined(repeat(norm, 2), mesh, microbatches=1)
    with pytest.raises(ValueError, match="'norm' has a state"):
        stage.apply({}, {"mean": jnp.zeros((2, 2))}, ROWS, key=None, train=False)


# Several processes.


@pytest.mark.slow
@pytest.mark.parametrize("text", ["data=2,pipe=2,tensor=2", "pipe=2,data=2,tensor=2"])
def test_f2_two_processes_of_four_devices_are_one(text, alone):
    """They part the first axis: sums cross, or all that goes down the pipe and back."""
    done = job("tests.parallel.lattice", [json.dumps({"mesh": text})] * 2)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-2000:]
    first, second = (json.loads(one.stdout.splitlines()[-1]) for one in done)
    assert first == second
    losses, grads, _ = alone(2)
    np.testing.assert_allclose(first["losses"], losses, atol=1e-6)
    want = flat(grads)
    assert first["grads"].keys() == want.keys()
    for name, leaf in want.items():
        np.testing.assert_allclose(first["grads"][name], leaf, atol=1e-6, err_msg=name)
    assert first["spoilt"] == [True] * 4  # of the last block, on each device of both


@pytest.mark.slow
def test_g_a_process_with_another_config_is_named_before_the_first_step():
    done = job("tests.parallel.lattice", ['{"seed": 0}', '{"seed": 1}'])
    for one in done:
        assert one.returncode and "the config of process 1 is not that of" in one.stderr
