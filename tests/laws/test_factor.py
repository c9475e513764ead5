"""The laws of factors. A new factor is done when its line in FACTORS passes.

A factor is made from a dense kernel by its `fit`, and stands for a kernel of that shape
and dtype; whether it is the same kernel is the matter of its own test, but for those
that say they are `exact`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.factor import (
    Factor,
    cast_floats,
    dot,
    factorize,
    is_factor,
    materialize,
)
from splitjax.core.gradient import value_and_grad
from splitjax.core.tree import is_float, path_name, where
from splitjax.factors import lora
from splitjax.factors.low_rank import low_rank
from splitjax.factors.mpo_fit import mpo
from splitjax.factors.mpo_plan import mpo_plan
from splitjax.factors.product import Product
from splitjax.factors.quantized import quantized_to
from splitjax.factors.smartdeal import smartdeal
from splitjax.factors.weighted import entries, rows
from splitjax.models.dense import Dense
from splitjax.storage.checkpoint import Checkpoints

E, IN, OUT = 3, 6, 4
KEY = jax.random.key(7)


def normal(name: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(KEY, name), shape).astype(dtype)


KERNEL, STACK = normal(0, IN, OUT), normal(1, E, IN, OUT)


@dataclasses.dataclass(frozen=True)
class Member:
    """A factor and how it is made.

    Attributes:
      name: of the line.
      fit: `kernel -> Factor`, for the kernels (IN, OUT) and (E, IN, OUT) of this file.
      exact: whether it stands for the very kernel it was made from.
      batch: whether leading axes are a batch. False needs a reason beside the line.
      tolerance: how far `dot` may be from the product with the dense kernel, in parts
        of the largest entry: sums are taken in another order.
      still: names of fields that a gradient does not move.
      codes: names of fields of whole numbers. It needs a reason beside the line.
    """

    name: str
    fit: Callable[[jax.Array], Factor]
    exact: bool = False
    batch: bool = True
    tolerance: float = 1e-5
    still: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()

    def __str__(self):
        return self.name


def two(kernel):
    """A product of full rank, without a decomposition."""
    eye = jnp.eye(OUT, dtype=kernel.dtype)
    eye = jnp.broadcast_to(eye, (*kernel.shape[:-2], OUT, OUT))
    return Product(kernel, eye)


def adapted(kernel, trained=True):
    """An adapter, as it begins (b is zero) or as it is after some training."""
    factor = lora.fit(kernel, KEY, rank=2, alpha=4)
    ends = {"a": kernel[..., :2], "b": kernel[..., :2, :]}
    return dataclasses.replace(factor, **ends) if trained else factor


def beside(qtype):
    """A trained adapter beside a quantized kernel, two blocks of rows to a column."""
    return lambda kernel: dataclasses.replace(
        adapted(kernel), base=quantized_to(qtype, block=4)(kernel)
    )


FROZEN, BASE = ("codes", "scale"), ("base/codes", "base/scale")
FACTORS = [
    Member("low_rank", low_rank(2)),
    Member("low_rank, full", low_rank(OUT), exact=True),
    Member("product", two, exact=True),
    Member("mpo", mpo(mpo_plan(IN, OUT, 3)), exact=True),
    Member("mpo, truncated", mpo(mpo_plan(IN, OUT, 2, max_bond=2))),
    Member("fwsvd", lambda kernel: rows(2)(kernel, jnp.abs(kernel))),
    Member("wsvd", lambda kernel: entries(2, iterations=2)(kernel, jnp.abs(kernel))),
    # The base is frozen; a learns nothing before b, which is zero at first, has moved.
    Member("lora", adapted, still=("base",)),
    Member("lora, fresh", lambda k: adapted(k, False), exact=True, still=("base", "a")),
    Member("smartdeal", smartdeal(0.2, span=2)),
    Member("smartdeal of a product", lambda k: smartdeal(0.2, span=2)(two(k))),
    # Bits have no gradient: nothing trains a quantized kernel.
    Member("int8", quantized_to("int8", block=None), still=FROZEN, codes=FROZEN[:1]),
    Member("int4", quantized_to("int4", block=4), still=FROZEN, codes=FROZEN[:1]),
    Member("nf4", quantized_to("nf4", block=2), still=FROZEN, codes=FROZEN[:1]),
    Member("e4m3", quantized_to("float8_e4m3fn"), still=FROZEN, codes=FROZEN[:1]),
    Member("qlora", beside("nf4"), still=BASE, codes=BASE[:1]),
]
law = pytest.mark.parametrize("member", FACTORS, ids=str)
batched = pytest.mark.parametrize("member", [m for m in FACTORS if m.batch], ids=str)


@functools.cache
def made(member: Member, kind: str = "one") -> Factor:
    kernel = {"one": KERNEL, "stack": STACK, "bf16": KERNEL.astype(jnp.bfloat16)}[kind]
    return member.fit(kernel)


def assert_near(found, want, part: float):
    found, want = (np.asarray(a.astype(jnp.float32)) for a in (found, want))
    assert np.abs(found - want).max() <= part * max(np.abs(want).max(), 1e-30)


@law
def test_it_is_a_frozen_node_of_floats(member):
    factor = made(member)
    assert is_factor(factor)
    leaves, tree = jax.tree.flatten(factor)
    found = jax.tree_util.tree_leaves_with_path(factor)
    whole = tuple(path_name(path) for path, leaf in found if not is_float(leaf))
    assert leaves and whole == member.codes
    assert isinstance(tree.unflatten(leaves), type(factor))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(factor, dataclasses.fields(factor)[0].name, None)


@law
def test_its_spec_is_that_of_the_kernel(member):
    for kind, kernel in (("one", KERNEL), ("bf16", KERNEL.astype(jnp.bfloat16))):
        factor = made(member, kind)
        dense = factor.materialize()
        spec = (kernel.shape, kernel.dtype)
        assert (factor.spec.shape, factor.spec.dtype) == spec
        assert (dense.shape, dense.dtype) == spec
        floats = [leaf for leaf in jax.tree.leaves(factor) if is_float(leaf)]
        assert floats and all(leaf.dtype == kernel.dtype for leaf in floats)


@law
def test_an_exact_one_is_its_kernel(member):
    error = jnp.abs(made(member).materialize() - KERNEL).max()
    assert (float(error) < 1e-5) == member.exact


@law
@pytest.mark.parametrize("shape", [(IN,), (5, IN), (2, 5, IN), (0, IN)], ids=str)
def test_dot_is_the_product_with_the_kernel(member, shape):
    factor, x = made(member), normal(2, *shape)
    found = dot(factor, x)
    assert found.shape == (*shape[:-1], OUT) and found.dtype == x.dtype
    if found.size:
        assert_near(found, x @ factor.materialize(), member.tolerance)


@law
def test_dot_refuses_another_width_or_dtype(member):
    with pytest.raises(ValueError, match=str(IN + 1)):
        made(member).dot(normal(2, 5, IN + 1))
    with pytest.raises(TypeError, match="bfloat16"):
        made(member).dot(normal(2, 5, IN, dtype=jnp.bfloat16))


@batched
def test_leading_axes_are_a_batch(member):
    whole = made(member, "stack")
    assert whole.spec.shape == STACK.shape
    each = [member.fit(kernel) for kernel in STACK]
    rows = jnp.stack([factor.materialize() for factor in each])
    assert_near(whole.materialize(), rows, 1e-5)
    x = normal(3, E, 2, 5, IN)
    want = jnp.stack([dot(f, row) for f, row in zip(each, x, strict=True)])
    assert_near(dot(whole, x), want, member.tolerance)
    assert_near(dot(whole, x[:, 0]), want[:, 0], member.tolerance)


@law
def test_a_gradient_reaches_every_array(member):
    """And is the same through `dot` and through the kernel."""
    factor, x = made(member), normal(4, 5, IN)
    target = normal(5, 5, OUT)
    loss = {
        "dot": lambda f: jnp.square(dot(f, x) - target).mean(),
        "dense": lambda f: jnp.square(x @ materialize(f) - target).mean(),
    }
    through, dense = (value_and_grad(one)(factor)[1] for one in loss.values())
    rows = jax.tree_util.tree_leaves_with_path(through)
    for (path, found), want in zip(rows, jax.tree.leaves(dense), strict=True):
        assert found.dtype == want.dtype
        assert_near(found, want, 1e-4)
        moved = float(jnp.abs(found).max()) > 0
        assert moved == (path_name(path) not in member.still), path_name(path)


@law
def test_jit_is_eager(member):
    factor, x = made(member), normal(2, 5, IN)
    same, product = jax.jit(lambda f, x: (f, dot(f, x)))(factor, x)
    assert jax.tree.structure(same) == jax.tree.structure(factor)
    assert_near(product, dot(factor, x), 1e-6)


@law
def test_it_computes_in_another_dtype(member):
    """As our layers cast it: to bfloat16, which knows 8 bits."""
    factor = cast_floats(made(member), jnp.bfloat16)
    assert type(factor) is type(made(member)) and factor.spec.dtype == jnp.bfloat16
    found = dot(factor, normal(2, 5, IN).astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert_near(found, dot(made(member), normal(2, 5, IN)), 0.05)


@law
def test_a_checkpoint_gives_it_back(member, tmp_path):
    params = {"wi": {"kernel": made(member), "bias": jnp.ones(OUT)}}
    store = Checkpoints(tmp_path, {"factor": member.name})
    store.save(1, params, {})
    back, _ = store.restore(jax.tree.map(jnp.zeros_like, params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for found, want in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert (found.dtype, found.tolist()) == (want.dtype, want.tolist())


@law
def test_it_stands_in_a_layer_of_ours(member):
    """And a foreign module reads what `materialize` makes of the tree."""
    layer, x = Dense(OUT), normal(2, 5, IN)
    params = {"kernel": KERNEL, "bias": normal(6, OUT)}
    new = factorize(member.fit, params, where("kernel"))
    assert new["bias"] is params["bias"]
    found = layer.apply({"params": new}, x)
    want = layer.apply({"params": materialize(new)}, x)
    assert_near(found, want, member.tolerance)
