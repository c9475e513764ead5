"""The laws of codecs. A new codec is done when its line in CODECS passes.

Compiling is what these tests cost, so each codec is compiled once for each of its
inputs (`programs`). The laws that need programs of their own, jit is eager and vmap is
a loop, read the input "bad" alone; for a `repeat` they are slow tests.
"""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax import codecs
from splitjax.codecs import (
    Codec,
    Context,
    Sized,
    binary,
    bounded,
    c3,
    cast,
    chain,
    delta,
    feedback,
    fixed_width,
    identity,
    lossless,
    nonfinite,
    on_tree,
    pack_signs,
    perturb,
    powersgd,
    projection,
    quantize,
    ragged,
    random_k,
    randomize,
    scaled_sign,
    sign,
    state_bytes,
    top_k,
    uniform,
    wire_bytes,
)
from splitjax.core.codec import message_spec, split_smooth
from splitjax.core.message import is_lossless, is_sized
from splitjax.core.tree import combine, is_float, spec_of, split_floats
from splitjax.runtime import frame

B, T, D = 3, 5, 7
KEY = jax.random.key(3)


def normal(name: int, shape: tuple, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(KEY, name), shape).astype(dtype)


def padded(lengths, dtype=jnp.float32) -> dict:
    """A batch with padding: what a language model sends."""
    mask = jnp.arange(T)[None] < jnp.array(lengths, jnp.int32)[:, None]
    h = normal(0, (*mask.shape, D), dtype)
    skip = normal(1, (*mask.shape, 2, 8), jnp.bfloat16)
    return {
        "h": jnp.where(mask[..., None], h, jnp.zeros_like(h)),
        "skip": jnp.where(mask[..., None, None], skip, jnp.zeros_like(skip)),
        "pooled": normal(2, (mask.shape[0], D)),
        "ids": jnp.arange(mask.size, dtype=jnp.int32).reshape(mask.shape),
        "mask": mask,
    }


def sized(used: int, *shape: int, dtype=jnp.float32) -> Sized:
    x = normal(used, shape, dtype)
    row = jnp.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return Sized(jnp.where(row < used, x, jnp.zeros_like(x)), jnp.int32(used))


ARRAYS = {
    "odd": normal(4, (B, T, D)),
    "bf16": normal(5, (2, 70), jnp.bfloat16),
    "f16": normal(6, (9,), jnp.float16),
    "scalar": normal(7, ()),
    "empty": jnp.zeros((0, 4, 8)),
    "narrow": jnp.zeros((4, 0)),
    "flat": jnp.stack([jnp.full(8, 3.7), jnp.zeros(8)]),
    "ids": jnp.arange(6, dtype=jnp.int32),
    "flag": jnp.array([True, False]),
}
BAD = {
    "nan": jnp.array([[1.0, jnp.nan, 2.0], [3.0, 4.0, 5.0]]),
    "inf": jnp.array([[-jnp.inf, 1.0, jnp.inf], [3.0, 4.0, 5.0]], jnp.bfloat16),
    "large": jnp.array([3e38, -3e38, 1.0]),
    "small": jnp.array([1e-40, -1e-30, 1e-20]),
    "half": jnp.array([65504.0, -65504.0, 1.0], jnp.float16),
}
ROWS = {
    "some": sized(3, 5, 7),
    "all": sized(4, 4, 2, 3, dtype=jnp.bfloat16),
    "vector": sized(5, 6, dtype=jnp.float16),
    "none": sized(0, 0, 3),
}
BATCHES = {
    "batch": padded([5, 1, 3]),
    "hollow": padded([0, 0, 0], jnp.float16),
    "no batch": padded([]),
}
# Also padding as a model may leave it: none of that may cross.
SPOILT = BATCHES["batch"]["h"].at[0, 1, 2:4].set(jnp.array([jnp.nan, jnp.inf]))
SPOILT = jnp.where(BATCHES["batch"]["mask"][..., None], SPOILT, jnp.nan)
BATCHES["bad"] = {
    "h": SPOILT,
    "skip": SPOILT.astype(jnp.bfloat16),
    "ids": BATCHES["batch"]["ids"],
    "mask": BATCHES["batch"]["mask"],
}
FEW = {"rows": ROWS, "bad": BAD}
DENSE = {"arrays": ARRAYS, "bad": BAD, "batch": BATCHES["batch"]}
MOST = {"arrays": ARRAYS, "bad": BAD, "rows": ROWS}
PLAIN = {"flat": {"flat": ARRAYS["flat"], "f16": ARRAYS["f16"]}, "bad": BAD}
MEMORIES = {
    "half": {"h": normal(10, (B, 9), jnp.float16), "n": ARRAYS["ids"]},
    "bad": {"h": BATCHES["batch"]["pooled"].at[0, :2].set(jnp.array([jnp.nan, 3e38]))},
}
# One array with tokens and one without; more is in tests/codecs/test_delta.py.
TOKENS = {
    name: {k: v for k, v in BATCHES[name].items() if k != "skip"}
    for name in ("hollow", "bad")
}
SOME = {name: BATCHES[name] for name in ("batch", "bad")}
TREES = {"arrays": ARRAYS, "bad": BAD, "rows": ROWS, "batch": BATCHES["batch"]}


@dataclasses.dataclass(frozen=True)
class Member:
    """A codec and the inputs that it takes.

    Attributes:
      linear: whether a smooth codec is linear, so that its adjoint is tested.
      any_shape: whether one state serves inputs of other shapes too.
        False where the state has rows of examples.
      repeat: whether other lines go the same ways through the code.
      tolerance: of a codec that sums or draws floats, which compiled programs do in
        orders of their own: how far the decoded floats of two may be apart.
    """

    codec: object
    inputs: dict = dataclasses.field(default_factory=lambda: TREES)
    linear: bool = True
    any_shape: bool = True
    repeat: bool = False
    tolerance: float = 0.0

    def __str__(self):
        return self.codec.name


DELTA = functools.partial(delta, quantize(3, axis="channel", power_of_two=True))
CODECS = [
    Member(identity()),
    Member(cast("bf16")),
    Member(cast("f16")),
    Member(cast("f8_e4m3")),
    Member(cast("f8_e5m2")),
    Member(quantize(8)),
    Member(quantize(4, axis="channel"), repeat=True),
    Member(quantize(4, axis="group", group=4), repeat=True),
    Member(quantize(3, mode="symmetric")),
    Member(quantize(8, mode="symmetric", power_of_two=True, axis="channel")),
    Member(quantize(5, axis="group", group=64, power_of_two=True)),
    Member(quantize(2, rounding="stochastic")),
    Member(ragged(), BATCHES),
    Member(chain(ragged(), quantize(4, axis="channel")), BATCHES),
    Member(chain(ragged(), cast("bf16"), quantize(6)), BATCHES, repeat=True),
    Member(top_k(0.2), MOST),
    Member(top_k(0.6, axis="all"), PLAIN, repeat=True),
    Member(random_k(0.3), MOST),
    Member(random_k(3, axis="all", unbiased=True), PLAIN, repeat=True),
    Member(feedback(cast("bf16")), DENSE, any_shape=False),
    Member(delta(quantize(2, power_of_two=True)), MEMORIES, any_shape=False),
    Member(DELTA(first="quantized", memory="int4", check=1), MEMORIES, any_shape=False),
    Member(chain(ragged(), DELTA(memory="f16", first="half")), TOKENS, any_shape=False),
    Member(projection(2, every=2), FEW, any_shape=False, tolerance=0.01),
    Member(powersgd(1), FEW, any_shape=False, tolerance=0.01),
    Member(on_tree({"h": quantize(4), "skip": cast("f8_e5m2")}), BATCHES),
    Member(bounded(0.01), MOST),
    Member(bounded(1e-3, True, "lorenzo2d", block=None), SOME, repeat=True),
    Member(chain(ragged(), bounded(0.1), lossless()), SOME, repeat=True),
    Member(fixed_width(0.1, 4), FEW, repeat=True),
    Member(lossless(), MOST),
    Member(chain(ragged(), quantize(4), lossless(3)), SOME, repeat=True),
    Member(uniform(0.25)),
    Member(uniform(0.5, relative=True, rounding="stochastic"), MOST),
    Member(chain(ragged(), uniform(0.25), lossless("columns")), SOME, repeat=True),
    # A sum may round its bfloat16 result the other way: one part in 128.
    Member(c3(2), FEW, any_shape=False, tolerance=0.01),
    Member(
        chain(ragged(), c3(3, keys="unitary", seed=1, center=True), quantize(8)),
        BATCHES,
        any_shape=False,
        tolerance=0.01,
    ),
    Member(binary(), linear=False),
    Member(binary(center=True), linear=False, repeat=True),
    Member(scaled_sign(), tolerance=0.01),
    Member(scaled_sign("channel"), FEW, tolerance=0.01, repeat=True),
    Member(
        chain(ragged(), sign(), randomize(1.0), pack_signs()), BATCHES, linear=False
    ),
    Member(perturb("laplace", scale=0.1, clip=1.0), FEW, linear=False, tolerance=0.01),
]
# Factories of a chain, whose parts have the lines.
SHORTHANDS = {"binary"}
CASES = [
    pytest.param(m, x, id=f"{m}-{name}") for m in CODECS for name, x in m.inputs.items()
]
every_case = pytest.mark.parametrize("member, x", CASES)
every_codec = pytest.mark.parametrize("member", CODECS, ids=str)
every_kind = pytest.mark.parametrize(
    "member",
    [
        pytest.param(m, id=str(m), marks=[pytest.mark.slow] if m.repeat else [])
        for m in CODECS
    ],
)


@functools.cache
def programs(codec):
    """Encode and decode, compiled once for all laws; `train` chooses the program."""

    def encode(x, state, ctx):
        return codec.encode(x, state, ctx._replace(train=True))

    return jax.jit(encode), jax.jit(codec.decode)


def context(x, key=KEY) -> Context:
    mask = x.get("mask")
    leaves = (a for a in jax.tree.leaves(x) if a.ndim)
    count = next(leaves).shape[0] if mask is None else mask.shape[0]
    return Context(key, mask, True, 0, jnp.arange(count, dtype=jnp.int32))


def send(codec, x):
    """What the sender makes of x, and what the receiver makes of that."""
    encode, decode = programs(codec)
    message, tx = encode(x, codec.init(spec_of(x)), context(x))
    return message, tx, decode(message, codec.init(spec_of(x)))[0]


def same(a, b, tolerance=0.0):
    """Equal shapes, dtypes and numbers, NaN with NaN; floats within a tolerance."""

    def one(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        if is_float(a):  # NumPy does not know the NaN of ml_dtypes
            a, b = a.astype(np.float64), b.astype(np.float64)
        if is_float(a) and tolerance:
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(a, b, strict=True)

    jax.tree.map(one, a, b)


def shapes(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype.name), spec_of(tree))


def compute(tree):
    """The tree's leaves before they are coded, sized ones as slices of what is used."""

    def one(node):
        node = node.leaf if is_lossless(node) else node
        if not is_sized(node):
            return np.asarray(node)
        return np.asarray(node.buffer)[: int(node.used)]

    def stop(node):
        return is_sized(node) or is_lossless(node)

    return [one(node) for node in jax.tree.leaves(tree, is_leaf=stop)]


def test_every_codec_has_its_line():
    factories = {
        name
        for name, made in vars(codecs).items()
        if inspect.isfunction(made)
        and made.__module__.startswith(codecs.__name__ + ".")
        and inspect.signature(made).return_annotation is Codec
    }
    assert {"cast", "quantize", "ragged"} <= factories
    named = {part.name for m in CODECS for part in (m.codec.parts or (m.codec,))}
    missing = {f for f in factories if not any(n.startswith(f) for n in named)}
    assert missing == SHORTHANDS


@every_case
def test_shapes_and_dtypes_are_kept(member, x):
    message, _, y = send(member.codec, x)
    assert shapes(y) == shapes(x)
    assert shapes(message) == shapes(message_spec(member.codec, spec_of(x)))


@every_case
def test_integers_pass_through(member, x):
    _, _, y = send(member.codec, x)
    same(split_floats(x)[1], split_floats(y)[1])


@every_case
def test_decoding_makes_nothing_non_finite(member, x):
    _, _, y = send(member.codec, x)

    def one(a, b):
        if is_float(a):
            assert (np.isfinite(b) | ~np.isfinite(a)).all()

    jax.tree.map(one, x, y)


@every_codec
def test_what_is_not_finite_is_counted_or_arrives_so(member):
    """It vanishes nowhere without a word, and padding is nobody's loss."""
    if member.codec.name.startswith("random_k"):
        pytest.skip("it counts what crosses alone: see tests/codecs/test_random_k.py")
    x = member.inputs["bad"]
    _, tx, y = send(member.codec, x)
    mask = np.asarray(x.get("mask", True))
    bad, arrived, large = 0, 0, 0
    for name, a in x.items():
        if not is_float(a):
            continue
        a, b = (np.asarray(one).astype(np.float32) for one in (a, y[name]))
        real = mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim))
        bad += (real & ~np.isfinite(a)).sum()
        arrived += (real & ~np.isfinite(a) & ~np.isfinite(b)).sum()
        large += (real & np.isfinite(a) & (np.abs(a) > 2.0**48)).sum()
    counted = int(nonfinite(tx))
    assert bad and counted + arrived >= bad
    assert counted <= bad + large


@every_case
def test_rows_that_are_not_used_are_zero(member, x):
    message, _, y = send(member.codec, x)
    for node in jax.tree.leaves((message, y), is_leaf=is_sized):
        if is_sized(node):
            assert not np.asarray(node.buffer)[int(node.used) :].any()


@every_kind
def test_jit_is_eager(member):
    """To the bit, where every product is exact and nothing is summed."""
    x = member.inputs["bad"]
    message, tx, y = send(member.codec, x)
    state = member.codec.init(spec_of(x))
    with jax.disable_jit():
        eager, eager_tx = member.codec.encode(x, state, context(x))
        back, _ = member.codec.decode(eager, state)
    same(tx, eager_tx, member.tolerance)
    same(y, back, member.tolerance)
    if member.tolerance:  # codes of unlike sums may be neighbors
        assert shapes(message) == shapes(eager)
    else:
        same(message, eager)


@every_kind
def test_vmap_is_a_loop(member):
    """To the bit where nothing is summed, with a key and a state for each lane."""
    codec = member.codec
    x = member.inputs["bad"]
    lanes = [x, jax.tree.map(lambda a: -a if is_float(a) else a, x)]
    keys = jax.random.split(KEY)

    def run(x, state, key):
        message, state = codec.encode(x, state, context(x, key))
        return codec.decode(message, state)[0], state

    state = codec.init(spec_of(x))
    stack = functools.partial(jax.tree.map, lambda *a: jnp.stack(a))
    one = jax.jit(run)
    loop = [one(x, state, k) for x, k in zip(lanes, keys, strict=True)]
    lanes = jax.jit(jax.vmap(run))(stack(*lanes), stack(state, state), keys)
    same(stack(*loop), lanes, member.tolerance)


@every_case
def test_both_ends_agree_across_real_bytes(member, x):
    message, _, y = send(member.codec, x)
    schema = frame.Schema.of(message_spec(member.codec, spec_of(x)))
    data = frame.write(schema, message, kind="up", run=1, slot=2, tick=3, hop=0)
    _, arrived = frame.read(schema, data, max_bytes=len(data))
    same(message, arrived)
    same(y, programs(member.codec)[1](arrived, member.codec.init(spec_of(x)))[0])


@every_case
def test_bytes_are_what_was_promised(member, x):
    spec = spec_of(x)
    message, _, _ = send(member.codec, x)
    schema = frame.Schema.of(message_spec(member.codec, spec))
    data = frame.write(schema, message, kind="up", run=0, slot=0, tick=0, hop=0)
    fact, plain = frame.payload_bytes(message), sum(a.nbytes for a in compute(message))
    framing = len(data) - fact
    assert framing == frame.framing_bytes(schema)
    assert framing <= 64 * max(1, len(schema.leaves))
    assert fact <= plain <= wire_bytes(member.codec, spec)
    if not any(leaf.coder for leaf in schema.leaves):
        assert fact == plain
    if not any(leaf.sized for leaf in schema.leaves):
        assert plain == wire_bytes(member.codec, spec)


@every_case
def test_state_holds_arrays_only(member, x):
    spec = spec_of(x)
    state = member.codec.init(spec)
    _, tx, _ = send(member.codec, x)
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves((state, tx)))
    assert shapes(state) == shapes(tx)
    assert state_bytes(member.codec, spec) == sum(
        a.nbytes for a in jax.tree.leaves(state)
    )


@every_codec
def test_another_shape_is_served_or_refused(member):
    """A codec whose state has no shape serves every length bucket; others raise."""
    other = {"h": normal(8, (2, T + 1, D)), "skip": normal(9, (2, T + 1, 8))}
    other["mask"] = jnp.ones((2, T + 1), bool)
    codec = member.codec
    state = codec.init(spec_of(padded([5, 1, 3])))
    if not member.any_shape:
        with pytest.raises(ValueError, match="shape"):
            codec.encode(other, state, context(other))
        return
    encode, decode = programs(codec)
    message, _ = encode(other, state, context(other))
    y, _ = decode(message, state)
    assert shapes(y) == shapes(other)
    same(y, send(codec, other)[2])


@every_codec
def test_identity_is_the_unit_of_chain(member):
    """By its parts, which are the very same: nothing needs to be compiled for that."""
    both = chain(identity(), member.codec, identity())
    assert both.name == member.codec.name
    assert both.smooth == member.codec.smooth
    assert both.parts == member.codec.parts
    assert both.parts or both is member.codec or both.name == "identity"


@every_codec
def test_smooth_comes_before_rough(member):
    if split_smooth(member.codec)[0].name == "identity":
        pytest.skip("no part of it is smooth")
    with pytest.raises(ValueError, match="smooth ones first"):
        chain(quantize(8), member.codec)


@every_codec
def test_smooth_part_has_an_adjoint(member):
    """<A x, y> = <x, A* y> for encode and for decode; gradients are finite."""
    smooth, _ = split_smooth(member.codec)
    x = next(iter(member.inputs.values()))
    state = smooth.init(spec_of(x))
    floats, rest = split_floats(x)

    def encode(floats):
        message, _ = smooth.encode(combine(floats, rest), state, context(x))
        return split_floats(message)

    def inner(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return sum(float(np.vdot(np.float64(p), np.float64(q))) for p, q in pairs)

    def check(run, x):
        y, pull, *_ = jax.vjp(jax.jit(run), x)
        g = jax.tree.map(lambda a: normal(a.size, a.shape, a.dtype), y)
        (back,) = pull(g)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(back))
        if member.linear:
            # Values move and are not summed: equal but for the order of the sum here.
            near = member.tolerance * (inner(y, y) * inner(g, g)) ** 0.5
            expected = pytest.approx(inner(x, back), rel=1e-9, abs=max(1e-9, near))
            assert inner(y, g) == expected
        return y

    message = check(lambda floats: encode(floats)[0], floats)
    others = encode(floats)[1]

    def decode(message):
        y, _ = smooth.decode(combine(message, others), state)
        return split_floats(y)[0]

    check(decode, message)


@every_codec
def test_no_floats_is_no_work(member):
    """A gradient's tree has None where the message has integers."""
    if member.codec.smooth or "mask" in member.inputs["bad"]:
        pytest.skip("it is no codec of gradients")
    x = {"h": jnp.ones((2, 8)), "ids": None}
    message, tx, y = send(member.codec, x)
    assert y["ids"] is None and y["h"].shape == (2, 8)
