import jax.numpy as jnp
import pytest

from splitjax.train.trace import Trace


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_steps_after_the_first_are_traced(tmp_path, count):
    with Trace(tmp_path, 2) as trace:
        for _ in range(count):
            trace.step()
            jnp.ones(2).sum().block_until_ready()
    assert bool(files(tmp_path)) == (count > 1)
    assert not trace._running


def test_a_trace_ends_with_its_run(tmp_path):
    with pytest.raises(FloatingPointError), Trace(tmp_path, 9) as trace:
        for step in range(3):
            trace.step()
            if step == 2:
                raise FloatingPointError
    assert files(tmp_path) and not trace._running


def test_no_steps_no_trace(tmp_path):
    with Trace(tmp_path, 0) as trace:
        for _ in range(3):
            trace.step()
    assert not files(tmp_path)
