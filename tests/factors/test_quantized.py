"""Quantized kernels: qwix's own numbers, their bounds, their bytes, and bad input."""

import importlib.machinery
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.factor import factorize
from splitjax.core.tree import where
from splitjax.factors import lora, quantized
from splitjax.factors.low_rank import fit as low_rank
from splitjax.factors.quantized import QTYPES, Quantized, fit, quantized_to
from splitjax.factors.smartdeal import smartdeal
from splitjax.factors.smartdeal_pack import stored_bytes, stored_numbers
from splitjax.optim.lrpet import lrpet
from splitjax.optim.ranks import at_rank

# Appendix E of the paper.
NF4 = [-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004]
NF4 += [0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617]
NF4 += [0.72295684, 1]
by_type = pytest.mark.parametrize("qtype", QTYPES)


def normal(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def error(kernel, factor):
    apart = np.float64(kernel) - np.float64(factor.materialize())
    return np.abs(apart)


def tops(kernel, block):
    """The largest of each block, at each entry."""
    rows = kernel.shape[-2]
    found = np.zeros(kernel.shape)
    for start in range(0, rows, block):
        part = np.abs(np.float64(kernel[..., start : start + block, :]))
        found[..., start : start + block, :] = part.max(-2, keepdims=True)
    return found


@by_type
@pytest.mark.parametrize("block", [None, 8], ids=str)
def test_the_numbers_are_qwix_s_to_the_bit(qtype, block):
    qwix = pytest.importorskip("qwix")
    kernel = normal(3, 16, 5)
    tiled = {"channelwise_axes": (0, 2), "tiled_axes": {1: block or 16}}
    with jax.numpy_dtype_promotion("standard"):
        want = qwix.dequantize(qwix.quantize(kernel, qtype, **tiled))
    factor = fit(kernel, qtype, block=block)
    assert factor.codes.dtype == jnp.uint8 and factor.scale.shape[-2] == 16 // (
        block or 16
    )
    np.testing.assert_array_equal(factor.materialize(), want)


@pytest.mark.parametrize(("qtype", "top"), [("int8", 127.5), ("int4", 7.5)])
@pytest.mark.parametrize("block", [None, 16, 7], ids=str)
def test_whole_numbers_are_off_by_half_a_step_of_their_block(qtype, top, block):
    kernel = normal(33, 6) * jnp.exp(normal(33, 1, seed=1))  # rows of many sizes
    off = error(kernel, fit(kernel, qtype, block=block))
    half = tops(kernel, block or 33) / top / 2
    assert (off <= half * (1 + 1e-4)).all()
    assert off.max() > 0.8 * half[off == off.max()][0]  # it is no looser than it says


def test_nf4_has_the_paper_s_levels_and_takes_the_nearest():
    levels = np.array(NF4)
    kernel = normal(64, 3)
    factor = fit(kernel, "nf4", block=16)
    top = tops(kernel, 16)
    units = np.float64(factor.materialize()) / top
    assert np.abs(units[..., None] - levels).min(-1).max() < 1e-6
    want = levels[np.abs((np.float64(kernel) / top)[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(units, want, atol=1e-6)
    assert error(kernel, factor).max() <= 0.152 * top.max()
    line = jnp.array(levels, jnp.float32)[:, None] * 3
    np.testing.assert_allclose(fit(line, "nf4").materialize(), line, rtol=1e-6)


@pytest.mark.parametrize(
    ("qtype", "part", "least"),
    [("float8_e4m3fn", 2**-4, 2**-9 / 448), ("float8_e5m2", 2**-3, 2**-16 / 57344)],
)
def test_floats_of_8_bits_are_off_by_a_part_of_themselves(qtype, part, least):
    kernel = normal(32, 4) * jnp.exp(3 * normal(32, 4, seed=1))
    off = error(kernel, fit(kernel, qtype, block=8))
    size = np.abs(np.float64(kernel))
    bound = np.maximum(part * size, tops(kernel, 8) * least / 2)
    assert (off <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("qtype", "block", "dtype", "bits"),
    [
        ("nf4", 64, "float32", 4.5),
        ("int4", 64, "bfloat16", 4.25),
        ("int8", 64, "float32", 8.5),
        ("float8_e4m3fn", 32, "bfloat16", 8.5),
        ("nf4", None, "float32", 4.25),
    ],
)
def test_storage_takes_the_bytes_that_it_says(qtype, block, dtype, bits):
    kernel = normal(128, 16, dtype=jnp.dtype(dtype))
    factor = fit(kernel, qtype, block=block)
    held = sum(leaf.on_device_size_in_bytes() for leaf in jax.tree.leaves(factor))
    assert held == stored_bytes(factor) == bits / 8 * kernel.size
    said = quantized.stored_share(kernel, qtype, block or 128)
    assert held == said * kernel.nbytes
    assert stored_numbers(factor) == kernel.size + factor.scale.size


@by_type
def test_zeros_and_constants_and_their_signs_are_kept(qtype):
    kernel = jnp.zeros((6, 4)).at[:, 1].set(3.0).at[:, 2].set(-3.0)
    found = np.asarray(fit(kernel, qtype, block=4).materialize())
    assert not found[:, [0, 3]].any()
    # 127 of 127.5, 7 of 7.5 above zero; whole numbers have one more below it.
    loss = {"int8": 3 / 255, "int4": 3 / 15}.get(qtype, 1e-6)
    np.testing.assert_allclose(found[:, 1:3], kernel[:, 1:3], atol=loss * 1.001)


@by_type
@pytest.mark.parametrize("rows", [1, 7, 10])
def test_odd_lengths_and_a_last_block_that_is_shorter(qtype, rows):
    """As the rows of each block alone."""
    kernel = normal(rows, 3)
    factor = fit(kernel, qtype, block=4)
    each = [kernel[start : start + 4] for start in range(0, rows, 4)]
    want = jnp.concatenate([fit(part, qtype).materialize() for part in each])
    np.testing.assert_array_equal(factor.materialize(), want)
    half = QTYPES[qtype] == 4
    assert factor.codes.shape == ((rows + 1) // 2 if half else rows, 3)
    assert factor.spec.shape == kernel.shape


@by_type
def test_a_kernel_of_bfloat16_stays_one(qtype):
    kernel = normal(12, 3, dtype=jnp.bfloat16)
    factor = fit(kernel, qtype, block=4)
    wide = fit(kernel.astype(jnp.float32), qtype, block=4)
    assert factor.materialize().dtype == factor.scale.dtype == jnp.bfloat16
    np.testing.assert_array_equal(factor.codes, wide.codes)  # not of rounded units
    apart = np.abs(np.float64(factor.materialize()) - np.float64(wide.materialize()))
    assert (apart <= 3.1 * 2**-9 * np.abs(np.float64(wide.materialize()))).all()


def test_leading_axes_run_through_scan_as_layers_do():
    stack = normal(3, 10, 10)
    factor, x = fit(stack, "nf4", block=4), normal(2, 10)
    end, _ = jax.lax.scan(lambda x, layer: (layer.dot(x), None), x, factor)
    want = x
    for kernel in stack:
        want = fit(kernel, "nf4", block=4).dot(want)
    np.testing.assert_allclose(end, want, rtol=1e-5)


def test_the_way_back_keeps_no_dense_kernel():
    factor, x = fit(normal(64, 32), "nf4"), normal(5, 64)
    _, pull = jax.jit(lambda x: jax.vjp(lambda x: factor.dot(x), x))(x)
    shapes = [leaf.shape for leaf in jax.tree.leaves(pull)]
    assert (64, 32) not in shapes and (32, 64) not in shapes
    [found] = pull(jnp.ones((5, 32)))
    want = jnp.ones((5, 32)) @ factor.materialize().T
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_it_may_be_made_inside_of_a_program():
    kernel = normal(12, 3)
    inside = jax.jit(lambda k: fit(k, "int4", block=4))(kernel)
    outside = fit(kernel, "int4", block=4)
    assert jax.tree.structure(inside) == jax.tree.structure(outside)
    np.testing.assert_allclose(inside.materialize(), outside.materialize(), rtol=1e-6)


def test_a_share_of_the_bytes_chooses_the_code():
    kernel = normal(64, 8)
    made = {share: quantized.keeping(share)(kernel).qtype for share in (1, 0.27, 0.26)}
    assert made == {1: "int8", 0.27: "int8", 0.26: "nf4"}
    with pytest.raises(ValueError, match=r"share 0.1 .*takes 0.141"):
        quantized.keeping(0.1)(kernel)
    with pytest.raises(ValueError, match=r"share 1.5"):
        quantized.keeping(1.5)


@pytest.mark.parametrize(
    ("kernel", "options", "kind", "words"),
    [
        (jnp.ones((4, 3)), {"qtype": "nf5"}, ValueError, "did you mean 'nf4'"),
        (jnp.ones((4, 3)), {"block": 0}, ValueError, "block 0"),
        (jnp.ones(4), {}, ValueError, "matrices"),
        (jnp.ones((0, 3)), {}, ValueError, "matrices"),
        (jnp.ones((4, 3)).at[1, 1].set(jnp.nan), {}, ValueError, "NaN or infinity"),
        (jnp.ones((4, 3)).at[1, 1].set(-jnp.inf), {}, ValueError, "NaN or infinity"),
        (jnp.full((4, 3), 1e-6, jnp.float16), {"qtype": "int8"}, ValueError, "small"),
        (jnp.ones((4, 3), jnp.int32), {}, TypeError, "int32"),
        (low_rank(jnp.eye(4), 2), {}, TypeError, "LowRank is not quantized"),
    ],
)
def test_bad_kernels_and_options_are_told(kernel, options, kind, words):
    with pytest.raises(kind, match=words):
        fit(kernel, **options)


def test_without_qwix_the_extra_is_named(monkeypatch):
    factor, find = fit(jnp.ones((4, 2))), quantized.importlib.util.find_spec

    def found(name, *args):
        return None if name == "qwix" else find(name, *args)

    monkeypatch.setattr(quantized.importlib.util, "find_spec", found)
    assert isinstance(find("qwix"), importlib.machinery.ModuleSpec)
    for use in (lambda: fit(jnp.ones((4, 2))), factor.materialize):
        with pytest.raises(ImportError, match=r"pip install 'splitjax\[quantize\]'"):
            use()


def test_it_is_imported_where_it_is_used():
    code = "import sys, splitjax, splitjax.factors; sys.exit('qwix' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "then",
    [lambda w: low_rank(w, 2), smartdeal(0.1, span=2), quantized_to("int8")],
    ids=["low_rank", "smartdeal", "quantized"],
)
def test_nothing_is_fitted_to_codes(then):
    """Nor to those of an adapter's base."""
    params = {"kernel": fit(normal(12, 12))}
    with_one = lora.adapt(params, where("kernel"), 2, key=jax.random.key(0))
    for tree in (params, with_one):
        with pytest.raises(ValueError, match="kernel is closed: .*lora.adapt"):
            factorize(then, tree, where("kernel"))
    dense = {"kernel": params["kernel"].materialize()}
    assert factorize(then, dense, where("kernel"))["kernel"].spec.shape == (12, 12)


@pytest.mark.parametrize(
    ("name", "words"),
    [("codes", "kernel/codes' is uint8"), ("scale", "kernel/scale is closed")],
)
def test_no_projection_works_on_its_arrays(name, words):
    params = {"kernel": fit(normal(12, 12), "int8", block=2)}
    with pytest.raises(ValueError, match=words):
        lrpet(at_rank(f"kernel/{name}", 1), every=1).init(params)


def test_smartdeal_does_not_encode_its_scales():
    with pytest.raises(ValueError, match=r"a Quantized: .*comes last"):
        smartdeal(0.1, span=2)(fit(normal(40, 40), block=1))


def test_an_adapter_may_stand_beside_it_alone():
    kernel = fit(normal(12, 8))
    params = {"kernel": kernel}
    made = lora.adapt(params, where("kernel"), 2, key=jax.random.key(0))["kernel"]
    assert made.base is kernel and isinstance(made.base, Quantized)
    np.testing.assert_array_equal(made.materialize(), kernel.materialize())
    np.testing.assert_array_equal(lora.merge({"k": made})["k"], kernel.materialize())
    codes = {"kernel": smartdeal(0.1, span=2)(normal(12, 8))}
    with pytest.raises(ValueError, match="closed: .*powers of two"):
        lora.adapt(codes, where("kernel"), 2, key=jax.random.key(0))
