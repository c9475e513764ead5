import jax
import jax.numpy as jnp
import pytest

from splitjax.core.cut import cut
from splitjax.core.stage import join
from splitjax.metrics.flops import edge_share, flops
from splitjax.models.mlp import mlp


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture(scope="module")
def model():
    stages = mlp([16, 16, 16, 1])
    return stages, *join(stages).init(jax.random.key(0), spec(4, 16))


def test_a_product_of_matrices_has_two_operations_a_term():
    assert flops(lambda a, b: a @ b, spec(8, 32), spec(32, 4)) == 2 * 8 * 32 * 4
    assert flops(lambda a: a, spec(8)) == 0.0


def test_the_parts_of_a_cut_have_all_its_operations(model):
    stages, params, state = model
    shares = []
    for owners in (("edge", "cloud"), ("cloud", "edge")):
        made = cut(stages, after="dense_0", owners=owners)
        shares.append(edge_share(made, params, state, spec(4, 16)))
    assert sum(shares) == pytest.approx(1.0)
    assert 0 < shares[0] < shares[1] < 1


def test_a_later_cut_gives_the_edge_more(model):
    stages, params, state = model
    places = [("dense_0",), ("dense_1",), ("dense_2",), ("head",)]
    places = [p for p in places if p[0] in {stage.name for stage in stages}]
    shares = [
        edge_share(cut(stages, after=place), params, state, spec(4, 16))
        for place in places
    ]
    assert shares == sorted(shares) and len(set(shares)) == len(places) > 2
    assert shares[-1] == 1.0  # after the last stage there is the loss alone
    assert edge_share(cut(stages), params, state, spec(4, 16)) == 1.0
