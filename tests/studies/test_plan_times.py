import itertools
import logging

import jax
import jax.numpy as jnp

from splitjax.core.stage import Stage
from splitjax.parallel.mpmd import mpmd
from splitjax.studies.plan.times import Ready, get_devices, operations


def scale(name):
    def init(key, spec):
        return {"k": jnp.float32(2)}, {}

    def apply(params, state, x, *, key, train):
        return x * params["k"], state, {}

    return Stage(name, init, apply)


def test_operations_are_timed_alone_and_put_together_by_the_schedule():
    """By a clock on which each operation takes 1, of 1 of 2 stages one more."""
    names, micro = ("a", "b"), 3
    pipe = mpmd(
        [scale(name) for name in names],
        lambda y, target: (jnp.mean((y - target) ** 2), {}),
        cuts=(1,),
        homes=jax.devices()[:2],
        micro=micro,
        recompute=(1, 0),
    )
    params = {name: {"k": jnp.float32(2)} for name in names}
    put = pipe.put(params, {name: {} for name in names})
    ready = Ready(pipe, *put, [(jnp.ones(4), jnp.zeros(4))] * micro)
    ticks = itertools.count()
    [found] = operations({"a": ready}, rounds=2, clock=lambda: next(ticks)).values()
    assert found.forward == found.backward == (1, 1) and found.recompute == (1, 0)
    assert next(ticks) == 2 * 2 * sum(map(len, pipe.lists))
    # The first forward pass, three turns of the first stage but for its last forward,
    # and what it waits for the first gradient.
    assert found.timeline.makespan == 10
    assert found.timeline.busy == (9, 6)
    loss, grads = ready.step()
    assert float(loss) == 16 and len(jax.tree.leaves(grads)) == 2


def test_a_part_without_devices_is_left_out(monkeypatch, caplog):
    """On an accelerator, which has no virtual ones."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with caplog.at_level(logging.WARNING):
        assert not get_devices(99, "a long pipeline")
    assert "a long pipeline is left out: it needs 99 devices of 8" in caplog.text
    assert get_devices(8, "a pipeline")
