import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, cast
from splitjax.core.codec import message_spec
from splitjax.core.tree import spec_of

FORMATS = {"bf16": 2.0**-8, "f16": 2.0**-11, "f8_e4m3": 2.0**-4, "f8_e5m2": 2.0**-3}


def send(codec, x):
    message, state = codec.encode(x, (), Context())
    return message, codec.decode(message, state)[0]


@pytest.mark.parametrize("to, unit", FORMATS.items())
def test_the_error_is_half_a_unit(to, unit):
    x = jnp.linspace(-8.0, 8.0, 101)
    message, y = send(cast(to), x)
    assert message.node.array.dtype.itemsize == (1 if to.startswith("f8") else 2)
    np.testing.assert_allclose(y, x, rtol=unit, atol=2.0**-9)


@pytest.mark.parametrize("to", FORMATS)
def test_finite_saturates_and_the_rest_stays_non_finite(to):
    x = jnp.array([3.4e38, -3.4e38, jnp.inf, -jnp.inf, jnp.nan])
    _, y = send(cast(to), x)
    assert np.isfinite(y).tolist() == [True, True, False, False, False]
    assert float(y[0]) == -float(y[1]) == float(jnp.finfo(message_dtype(to)).max)


def message_dtype(to):
    spec = message_spec(cast(to), spec_of(jnp.zeros(1)))
    return spec.node.array.dtype


def test_narrow_leaves_cross_as_they_are():
    x = {"a": jnp.ones(3, jnp.float16), "b": jnp.ones(3, jnp.bfloat16)}
    message, _ = send(cast("bf16"), x)
    assert message["a"].node.array.dtype == jnp.float16


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match="did you mean 'bf16'"):
        cast("bf61")
