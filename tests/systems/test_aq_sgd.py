"""AQ-SGD (arXiv:2206.01299): quantize the change of an activation, not the activation.

How well a model learns does not tell it from direct quantization (a digits run of 2
bits ends at .99 with either); these laws do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import Context, chain, delta, quantize, ragged
from splitjax.core.codec import Link, wire_bytes
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import Stage
from splitjax.core.tree import spec_of
from splitjax.runtime import frame
from tests.doubles import Ends

X = np.random.default_rng(0).normal(size=(4, 5, 16)).astype(np.float32)
IDS = np.array([3, 0, 7, 5])


def errors(codec, visits=4, x=X):
    ends = Ends(codec, 8)
    return [np.abs(np.asarray(ends.send(x, IDS)) - x).max() for _ in range(visits)]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_geometric_contraction_of_delta_over_visits(bits):
    """A frozen activation: 2^-(bits - 1) a visit; direct quantization stands still."""
    found = errors(delta(quantize(bits, axis="channel"), first="quantized"))
    for before, after in zip(found, found[1:], strict=False):
        assert after <= before * 2.0 ** -(bits - 1) and after > 0
    # The step of a grid of powers of two halves just so, from the first on.
    exact = delta(quantize(bits, axis="channel", power_of_two=True), first="quantized")
    found = errors(exact)
    first = 2 * np.abs(X).max() * 2 / (2**bits - 1) / 2
    for visit, error in enumerate(found):
        assert error <= first * 2.0 ** (-(bits - 1) * visit)
    direct = quantize(bits, axis="channel")
    state, relative = direct.init(X), []
    for _ in range(4):
        message, state = direct.encode(X, state, Context())
        y = direct.decode(message, None)[0]
        relative.append(float(np.linalg.norm(y - X) / np.linalg.norm(X)))
    # The sheet's are .43, .21 and .105; its grid clips, and is symmetric.
    sheet = {2: 0.43, 3: 0.21, 4: 0.105}[bits]
    assert relative == 4 * relative[:1] and 0.6 * sheet < relative[0] < sheet
    assert np.abs(y - X).max() > 6 * found[-1]


def test_first_visit_full_is_exact():
    codec = delta(quantize(2, power_of_two=True))
    ends = Ends(codec, 8)
    np.testing.assert_array_equal(ends.send(X, IDS), X)
    drifted = X + np.float32(0.01)
    assert np.abs(np.asarray(ends.send(drifted, IDS)) - drifted).max() < 0.01


def test_a_moving_target_is_met_to_its_drift():
    """error <= v / (2^(bits - 1) - 1), the sum of the geometric series."""
    bits, drift = 3, 0.05
    ends = Ends(delta(quantize(bits, axis="channel")), 8)
    random, x, found = np.random.default_rng(1), X, []
    for _ in range(20):
        found.append(np.abs(np.asarray(ends.send(x, IDS)) - x).max())
        x = x + drift * random.choice([-1, 1], x.shape).astype(np.float32)
    assert max(found) <= drift / (2 ** (bits - 1) - 1) * 1.001
    assert max(found) > drift / 20


@pytest.mark.parametrize(
    "jit", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["jit", "eager"]
)
@pytest.mark.parametrize(
    "codec",
    [
        delta(quantize(2, axis="channel", power_of_two=True)),
        delta(quantize(3, rounding="stochastic"), memory="int4", first="half"),
        delta(quantize(4, power_of_two=True), memory="f16", first="quantized", check=3),
    ],
    ids=lambda codec: codec.name,
)
def test_sender_rows_are_receiver_rows_after_200_random_steps(codec, jit):
    """To the bit: two programs, or a compiled sender and a receiver that is not."""
    random = np.random.default_rng(2)
    base = random.normal(size=(12, 3, 8)).astype(np.float32)
    ends = Ends(codec, 12, jit=jit)
    for step in range(200):
        ids = random.permutation(12)[:4]
        ids[3] = -1 if step % 5 == 0 else ids[3]
        noise = random.normal(size=(4, 3, 8)).astype(np.float32)
        ends.send(base[ids] + 0.9**step * noise, ids)
        assert step % 20 or ends.equal()
    assert ends.equal() and len(list(ends.tx)) == 12
    assert int(ends.states["rx"]["parted"]) == 0


@pytest.mark.parametrize("bits", [2, 4])
def test_single_visit_bound(bits):
    """Half a step everywhere; the paper's clip above has an error of a whole one."""
    codec = delta(quantize(bits, axis="channel"), first="quantized")
    s = np.abs(X).max((0, 1))
    y = np.asarray(Ends(codec, 8).send(X, IDS))
    assert (np.abs(y - X) <= s / 2 ** (bits - 1)).all()
    # Step and low are rounded to bfloat16 numbers.
    half = np.ptp(X, (0, 1)) / (2**bits - 1) / 2
    assert (np.abs(y - X) <= 1.02 * half).all() and (np.abs(y - X) > 0.8 * half).any()


def test_stochastic_rounding_is_unbiased_over_400_draws():
    codec = delta(quantize(3, rounding="stochastic"), first="quantized")
    state, ids = codec.init(spec_of(X)), jnp.asarray(IDS, jnp.int32)

    @jax.jit
    @jax.vmap
    def draw(key):
        message, _ = codec.encode(X, state, Context(key, ids=ids))
        return codec.decode(message, state)[0]

    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 400)), np.float64)
    step = (X.max(-1) - X.min(-1))[..., None] / 7 * 1.02
    # The deviation of one draw is at most half a step: the bound has five sigma.
    assert (np.abs(drawn.mean(0) - X) <= 5 * step / 2 / np.sqrt(400)).all()
    assert drawn.std(0).max() > 0.1


def test_bytes_of_both_kinds_of_visit():
    """Padding left out; codes, scales, lows, ids and flags counted."""
    bits, width = 3, 16
    codec = chain(ragged(), delta(quantize(bits, axis="channel", power_of_two=True)))
    mask = np.arange(5) < np.array([5, 2, 1, 4])[:, None]
    x = {"h": jnp.where(mask[..., None], X, 0.0), "mask": jnp.asarray(mask)}

    class Packed(Ends):
        def send(self, x, ids):
            packed, _ = ragged().encode(x, (), None)
            return super().send(packed, ids)

    ends = Packed(codec.parts[1], 8)
    about = 4 * 4 + 1 + 2 * 4  # ids, flags, lengths
    grids = width * (1 + 2)  # an exponent and a low for each channel
    for codes in (12 * width * 4, 12 * width * bits // 8, 12 * width * bits // 8):
        ends.send(x, IDS)
        assert frame.payload_bytes(ends.message) == about + grids + codes
    assert wire_bytes(codec, spec_of(x)) >= about + grids + 12 * width * 4


def test_half_and_quantized_first_visits_are_counted():
    sent = {}
    for first in ("full", "half", "quantized"):
        ends = Ends(delta(quantize(4), first=first), 8)
        ends.send(X, IDS)
        sent[first] = frame.payload_bytes(ends.message)
    codes = X.size // 2 + 2 * 2 * 4 * 5  # and two bfloat16 a row
    assert sent["quantized"] == codes + 4 * 4 + 1
    assert sent["full"] - sent["half"] == 2 * X.size


def test_the_sender_gets_the_decoded_gradient_as_it_is():
    """Straight through: what is pulled back at the edge is what arrived, to the bit."""
    link = Link(delta(quantize(2, power_of_two=True)), quantize(4))
    scale = Stage(
        "scale",
        init=lambda key, spec: ({"k": jnp.ones(spec.shape)}, {}),
        apply=lambda p, s, x, *, key, train: (x * p["k"], s, {}),
    )
    head = Stage(
        "head",
        init=lambda key, spec: ({"w": jnp.float32(1)}, {}),
        apply=lambda p, s, x, *, key, train: (jnp.sin(x) * p["w"], s, {}),
    )
    split = Split(
        cut([scale, head], after="scale"), (link,), lambda y, t: (jnp.sum(y * t), {})
    )
    params, state = split.init(jax.random.key(0), X)
    links = split.init_links(params, state, X)
    target = jnp.cos(jnp.arange(X.size, dtype=jnp.float32)).reshape(X.shape)
    ids = jnp.asarray(IDS, jnp.int32)
    (_, extra), grads = split.value_and_grad(
        params, state, links, X, target, key=jax.random.key(1), ids=ids
    )
    gradient = jnp.cos(jnp.asarray(X)) * target  # the first visit is exact
    message, _ = link.backward.encode(gradient, link.backward.init(X), Context())
    arrived, _ = link.backward.decode(message, None)
    # x * k with k = 1: the gradient of k is that of the output times x.
    np.testing.assert_array_equal(grads[0]["scale"]["k"], arrived * X)
    ends = extra["links"][0]["forward"]
    same = jax.tree.map(np.array_equal, ends["tx"]["memory"], ends["rx"]["memory"])
    assert all(jax.tree.leaves(same)) and bool(ends["tx"]["memory"].seen.all())


@pytest.mark.parametrize(("bits", "coarse"), [(4, 0), (2, 1)])
def test_the_relative_error_of_a_change_is_measured_and_flagged(bits, coarse):
    """Two bits are too coarse for the .707 that the theorem asks for."""
    inner = quantize(bits, mode="symmetric", power_of_two=True)
    ends = Ends(delta(inner, measure=True, first="quantized"), 8)
    y = np.asarray(ends.send(X, IDS))
    state, want = ends.states["tx"], np.linalg.norm(X - y) / np.linalg.norm(X)
    assert float(state["c_q"]) == pytest.approx(want, rel=1e-5)
    assert int(state["coarse"]) == coarse == (want > 0.707)


def test_one_outlier_in_a_channel_is_flagged_and_met_all_the_same():
    """Of two bits none is left for the rest: c_Q is above 1 at the first visit."""
    x = np.random.default_rng(1).normal(size=(8, 25, 4)).astype(np.float32)
    x[0, 0] = 20.0
    ends = Ends(delta(quantize(2, axis="channel"), measure=True, first="quantized"), 8)
    found, c_q = [], []
    for _ in range(4):
        y = np.asarray(ends.send(x, np.arange(8)))
        found.append(np.abs(y - x).max())
        c_q.append(float(ends.states["tx"]["c_q"]))
    assert c_q[0] > 1 > 0.707 > max(c_q[1:]) and int(ends.states["tx"]["coarse"]) == 1
    for before, after in zip(found, found[1:], strict=False):
        assert after <= before / 2
