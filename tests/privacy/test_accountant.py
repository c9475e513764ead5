import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from splitjax.codecs import (
    binary,
    c3,
    chain,
    on_tree,
    pack_signs,
    perturb,
    quantize,
    ragged,
    randomize,
    sign,
)
from splitjax.core.codec import Context
from splitjax.core.mechanism import Mechanism
from splitjax.privacy import Spent, budget, epsilon_basic, epsilon_renyi, renyi

RESPONSE = Mechanism("randomized_response", 1.0, "value")
GAUSS = Mechanism("gauss", 2.0, "row")
LAPLACE = Mechanism("laplace", 0.5, "row")


def divergence(one, other, order, low=-80, high=80):
    """Renyi's, by its definition, of two densities."""

    def inside(x):
        return np.exp(order * one.logpdf(x) + (1 - order) * other.logpdf(x))

    value, _ = integrate.quad(inside, low, high, points=[0, 1], limit=200)
    return np.log(value) / (order - 1)


@pytest.mark.parametrize("order", [1.5, 2.0, 8.0])
def test_renyi_divergences_are_those_of_the_definition(order):
    at = np.array([order])
    p, q = 1 / (1 + np.e), np.e / (1 + np.e)
    two_points = q**order * p ** (1 - order) + p**order * q ** (1 - order)
    expected = np.log(two_points) / (order - 1)
    np.testing.assert_allclose(renyi(RESPONSE, at), expected)
    expected = divergence(stats.laplace(0, 2), stats.laplace(1, 2), order)
    np.testing.assert_allclose(renyi(LAPLACE, at), expected, rtol=1e-6)
    expected = divergence(stats.norm(0, 2), stats.norm(1, 2), order)
    np.testing.assert_allclose(renyi(GAUSS, at), expected, rtol=1e-6)


@pytest.mark.parametrize("mechanism", [RESPONSE, LAPLACE])
def test_renyi_grows_to_the_epsilon(mechanism):
    found = renyi(mechanism, np.array([1.001, 2.0, 50.0, 1e4]))
    assert (np.diff(found) > 0).all() and found[-1] < mechanism.level
    assert found[-1] == pytest.approx(mechanism.level, rel=1e-3)


def test_a_normal_release_has_its_exact_epsilon():
    """delta(epsilon) as Balle and Wang give it, and the bound above it but near."""
    exact, bound = (f([Spent(GAUSS, 1)], 1e-5) for f in (epsilon_basic, epsilon_renyi))
    found = stats.norm.cdf(0.25 - 2 * exact) - np.exp(exact) * stats.norm.cdf(
        -0.25 - 2 * exact
    )
    assert found == pytest.approx(1e-5, rel=1e-6)
    assert exact < bound < 1.2 * exact


def test_normal_releases_compose_as_one_of_their_norm():
    """So k of them are exactly one with a k times smaller variance."""
    many = epsilon_renyi([Spent(Mechanism("gauss", 20.0, "row"), 100)], 1e-5)
    assert many == pytest.approx(epsilon_renyi([Spent(GAUSS, 1)], 1e-5))
    assert many < epsilon_basic([Spent(Mechanism("gauss", 20.0, "row"), 100)], 1e-5)


@pytest.mark.parametrize("mechanism", [RESPONSE, LAPLACE])
def test_many_releases_cost_less_by_renyi(mechanism):
    spent = [Spent(mechanism._replace(level=0.01), 10_000)]
    assert epsilon_basic(spent, 1e-5) == pytest.approx(100)
    # Near the strong composition theorem: k e^2 / 2 + e sqrt(2 k log(1 / delta)).
    strong = 10_000 * 0.01**2 / 2 + 0.01 * np.sqrt(2 * 10_000 * np.log(1e5))
    assert 0.7 * strong < epsilon_renyi(spent, 1e-5) < 1.1 * strong


def test_nothing_spent_is_nothing_lost():
    assert epsilon_basic([], 0.1) == epsilon_renyi([], 0.1) == 0
    assert epsilon_renyi([Spent(GAUSS, 0)], 1e-5) == 0


def test_bad_numbers_raise():
    for delta in (0.0, 1.0, float("nan")):
        for epsilon in (epsilon_basic, epsilon_renyi):
            with pytest.raises(ValueError, match="delta"):
                epsilon([Spent(GAUSS, 1)], delta)
    with pytest.raises(ValueError, match="'cauchy'"):
        renyi(Mechanism("cauchy", 1.0, "row"), np.array([2.0]))


BITS = chain(sign(), randomize(2.0), pack_signs())
ROWS = jax.ShapeDtypeStruct((8, 4, 5), jnp.float32)
TEXT = {"h": ROWS, "mask": jax.ShapeDtypeStruct((8, 4), jnp.bool_)}
PAIR = {"h": ROWS, "skip": ROWS, "ids": jax.ShapeDtypeStruct((8,), jnp.int32)}


def spent(codec, spec, messages=1):
    return budget(codec, spec, examples=8, messages=messages)


@pytest.mark.parametrize(
    "codec, spec, releases",
    [
        (BITS, ROWS, 20),
        (chain(ragged(), BITS), TEXT, 20),
        # An example's group is one row of 20 bits; 4 tokens lie in 3 pairs at most.
        (chain(c3(4), BITS), ROWS, 20),
        (chain(ragged(), c3(2), BITS), TEXT, 3 * 5),
        (perturb("gauss", scale=1.0, clip=1.0), ROWS, 1),
        (chain(ragged(), perturb("gauss", scale=1.0, clip=1.0)), TEXT, 4),
        (on_tree({"h": BITS, "skip": BITS}), PAIR, 40),
    ],
    ids=["array", "ragged", "c3", "ragged c3", "row", "token rows", "tree"],
)
def test_an_example_releases_its_bits_or_rows(codec, spec, releases):
    assert spent(codec, spec, messages=3).releases == 3 * releases


def test_bits_compose():
    found = spent(BITS, ROWS, messages=10)
    assert found.epsilon_basic == 200 * 2.0
    assert 0 < found.epsilon_renyi < found.epsilon_basic
    assert "200 x randomized_response(2)" in str(found)


def test_without_noise_there_is_no_budget():
    assert spent(binary(), ROWS) is None
    assert spent(on_tree({"h": quantize(4)}), PAIR) is None


def test_floats_beside_the_noise_void_the_promise():
    found = spent(on_tree({"h": BITS}), PAIR)
    assert found.epsilon_basic is found.epsilon_renyi is None
    assert "other floats cross without noise: no promise" in str(found)


CENTERED = chain(sign(center=True), randomize(2.0), pack_signs())
H = {"h": ROWS, "ids": PAIR["ids"]}


def test_an_example_moves_the_centered_signs_of_others():
    """So its own bits are not all that tells of it."""
    x = jnp.full((8, 4, 5), 1.0)
    shown, _ = sign(center=True).encode(x, sign().init(x), Context())
    x = x.at[0].set(100.0)
    moved, _ = sign(center=True).encode(x, sign().init(x), Context())
    assert bool((shown.node[1:] != moved.node[1:]).all())


@pytest.mark.parametrize(
    "codec, spec",
    [
        (CENTERED, ROWS),
        (chain(ragged(), CENTERED), TEXT),
        (on_tree({"h": CENTERED}), H),
        (on_tree({"h": CENTERED, "skip": BITS}), PAIR),
        (chain(sign(center=True), perturb("gauss", scale=1.0, clip=1.0)), ROWS),
    ],
    ids=["array", "ragged", "tree", "tree with more", "rows"],
)
def test_noise_after_a_mix_of_the_whole_batch_promises_nothing(codec, spec):
    found = spent(codec, spec)
    assert found.epsilon_basic is found.epsilon_renyi is None
    assert "depends on its whole batch: no promise" in str(found)


@pytest.mark.parametrize("tree", [False, True])
def test_noise_before_the_mix_keeps_its_promise(tree):
    """Whatever is computed of noisy rows; noise that comes later adds nothing."""
    first = perturb("laplace", scale=50.0, clip=1.0)
    codec, alone = chain(first, CENTERED), spent(first, ROWS)
    found = spent(on_tree({"h": codec}), H) if tree else spent(codec, ROWS)
    assert found == alone and found.broken_by == ""


def test_the_stronger_of_two_noises_counts():
    """What is computed of a noisy value is no less private."""
    weak, strong = (perturb("laplace", scale=s, clip=1.0) for s in (1.0, 50.0))
    assert spent(chain(weak, strong), ROWS) == spent(strong, ROWS)
    assert spent(chain(strong, BITS), ROWS) == spent(strong, ROWS)


def test_bad_counts_raise():
    with pytest.raises(ValueError, match="examples=0"):
        budget(BITS, ROWS, examples=0, messages=1)
