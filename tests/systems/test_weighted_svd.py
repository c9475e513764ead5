"""Weighted low rank (FWSVD, TFWSVD): what it must reach, and what it must refuse.

The names f1 to f11 and g1 to g9 are the lines of acceptance and of bad input that the
system was built to. In float64, where a line asks for more than float32 has.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from splitjax.core.factor import dot, factorize, is_factor
from splitjax.core.stage import Stage, join
from splitjax.core.tree import where
from splitjax.factors import elementwise
from splitjax.factors.fisher import fisher, squares
from splitjax.factors.fwsvd import fwsvd, rank_one
from splitjax.factors.low_rank import fit as low_rank
from splitjax.factors.product import rank_keeping, svd
from splitjax.factors.rescue import factorize_weighted, rescued, spread, svd_gap
from splitjax.factors.weighted import entries, rows, weighted_loss, wsvd
from splitjax.models.dense import Dense

M, N, R = 20, 30, 4
RANDOM = np.random.default_rng(1)
KERNEL = RANDOM.normal(size=(M, N))
HEAVY = np.exp(2 * RANDOM.normal(size=(M, N)))  # log-normal: a heavy tail
ROWS = np.exp(RANDOM.normal(size=M))
EVEN = np.ones((M, N))


@pytest.fixture(scope="module", autouse=True)
def float64():
    """The numbers of these tests; what is held of float32 is cast to it there."""
    with jax.enable_x64(True):
        yield


def tail(scaled: np.ndarray, rank: int = R) -> float:
    return float(np.square(np.linalg.svd(scaled, compute_uv=False)[rank:]).sum())


def best_als(kernel, weights, rank=R, *, runs=5, iterations=150) -> float:
    made = wsvd(
        jnp.asarray(kernel),
        weights,
        rank,
        restarts=runs,
        key=jax.random.key(0),
        iterations=iterations,
        ridge=0.0,
    )
    each = [v for name, v in made[1].losses.items() if name.startswith("als")]
    assert len(each) == runs
    return min(each) * float(np.mean(weights))


def solved(method, weights=HEAVY, **options):
    start = svd(jnp.asarray(KERNEL), R)
    mean = weights / weights.mean()
    given = (jnp.asarray(KERNEL), jnp.asarray(mean), start.a, start.b)
    return elementwise.__dict__[method](*given, **options)


def test_f1_row_weights_have_the_tail_of_the_scaled_kernel_as_their_loss():
    weights = np.repeat(ROWS[:, None], N, 1)
    factor = fwsvd(jnp.asarray(KERNEL), weights.sum(1), R)
    found = weighted_loss(KERNEL, weights, factor)
    want = tail(np.sqrt(ROWS)[:, None] * KERNEL)
    assert found == pytest.approx(want, rel=1e-9)
    assert best_als(KERNEL, weights) == pytest.approx(want, rel=1e-9)
    assert found < 0.95 * weighted_loss(KERNEL, weights, svd(jnp.asarray(KERNEL), R))


def test_f2_weights_of_rank_one_have_a_closed_form():
    weights = np.outer(ROWS, HEAVY[0])
    factor = rank_one(jnp.asarray(KERNEL), weights, R)
    found = weighted_loss(KERNEL, weights, factor)
    root = np.sqrt(weights)
    assert found == pytest.approx(tail(root * KERNEL), rel=1e-9)
    best = best_als(KERNEL, weights, iterations=400)
    assert found == pytest.approx(best, rel=1e-8)


def test_f3_brute_force_finds_nothing_better():
    kernel, weights = KERNEL[:3, :2], HEAVY[:3, :2]
    angles = np.linspace(0, np.pi, 200_001)
    b = np.stack([np.cos(angles), np.sin(angles)])  # of each angle the best a is known
    top = (weights * kernel) @ b
    a = top / (weights @ np.square(b))
    errors = kernel[:, :, None] - a[:, None] * b[None]
    grid = (weights[:, :, None] * np.square(errors)).sum((0, 1)).min()
    factor, report = wsvd(
        jnp.asarray(kernel),
        weights,
        1,
        restarts=5,
        key=jax.random.key(1),
        iterations=200,
    )
    found = weighted_loss(kernel, weights, factor)
    assert found <= grid + 1e-8
    # The grid is as fine as the line asks: what the search found is on it.
    assert found == pytest.approx(grid, rel=1e-6)
    assert report.losses["fwsvd"] > 1.01 * report.losses[report.chosen]
    assert report.losses["svd"] > 1.01 * report.losses[report.chosen]


@pytest.mark.parametrize("method", ["als", "em"])
def test_f4_the_loss_never_rises(method):
    *_, losses = solved(method, iterations=60)
    losses = np.asarray(losses)
    assert losses[-1] < 0.9 * losses[0]
    assert (np.diff(losses) <= 1e-12 * losses[:-1]).all()


def test_f5_a_heavy_tail_is_where_als_gains():
    *_, losses = solved("als", iterations=100)
    plain = weighted_loss(KERNEL, HEAVY, svd(jnp.asarray(KERNEL), R))
    assert float(losses[-1]) * HEAVY.mean() <= 0.3 * plain


def test_f6_even_weights_are_plain_svd():
    for weights in (EVEN, 7.5 * EVEN):
        factor, report = wsvd(jnp.asarray(KERNEL), weights, R)
        plain = svd(jnp.asarray(KERNEL), R).materialize()
        assert np.abs(factor.materialize() - plain).max() < 1e-9
        assert report.losses[report.chosen] == pytest.approx(tail(KERNEL), rel=1e-12)
        assert report.gap == pytest.approx(1) and report.spread == 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_f7_the_unit_of_the_weights_is_nothing(scale):
    given = jnp.asarray(KERNEL, jnp.float32)
    for make in (wsvd, rank_one, lambda w, f, r: fwsvd(w, f.sum(1), r)):
        first, other = (make(given, f, R) for f in (HEAVY, scale * HEAVY))
        if make is wsvd:
            first, other = first[0], other[0]
        apart = np.abs(first.materialize() - other.materialize()).max()
        assert apart <= 1e-5


def softmax_loss(params, example):
    logits = example["x"] @ params["w"]
    return -jax.nn.log_softmax(logits)[example["y"]]


def test_f8_what_is_not_chosen_is_not_compiled_into_the_program():
    """A closed-over embedding of a language model would be a constant of 100 MB."""
    seen = []

    def loss(params, x):
        seen.append(isinstance(params["still"], jax.core.Tracer))
        return (params["w"] * params["still"] * x).sum()

    params = {"still": jnp.full(2, 2.0), "w": jnp.ones(2)}
    batches = [(jnp.ones((1, 2)), jnp.array([True]))]
    found = fisher(loss, params, batches, where=where("w"))
    assert found["still"] is None and found["w"].tolist() == [4.0, 4.0]
    assert seen and all(seen)


@pytest.mark.parametrize("sums", [False, True])
def test_f8_the_fisher_is_of_each_example(sums):
    """Against softmax regression, where dL/dW = x (p - y)', in two odd batches."""
    draw = np.random.default_rng(2)
    x = jnp.asarray(draw.normal(size=(11, 3)), jnp.float32)
    y = jnp.asarray(draw.integers(0, 4, 11))
    w = jnp.asarray(draw.normal(size=(3, 4)), jnp.float32)
    shifted = jax.nn.softmax(x @ w) - jax.nn.one_hot(y, 4, dtype=jnp.float32)
    each = np.asarray(x[:, :, None] * shifted[:, None, :], np.float64)
    valid = np.arange(11) != 8  # one row is filling
    batches = [
        ({"x": x[part], "y": y[part]}, jnp.asarray(valid[part]))
        for part in (slice(0, 7), slice(7, 11))
    ]
    found = fisher(softmax_loss, {"w": w}, batches, rows=sums, chunk=3)["w"]
    want = np.square(each[valid]).mean(0)
    of_batch = np.square(each[valid].mean(0))
    if sums:
        want, of_batch = want.sum(1), of_batch.sum(1)
    assert found.shape == want.shape and found.dtype == jnp.float32
    found = np.asarray(found, np.float64)
    assert np.abs(found - want).max() <= 1e-6
    assert (np.abs(found - of_batch) > 0.1 * of_batch).mean() > 0.9


def test_f8_an_edge_sends_the_row_sums_alone():
    """M numbers instead of M N, and the factor is the same."""
    params = {"wi": {"kernel": jnp.asarray(KERNEL), "bias": jnp.zeros(N)}}
    choose = where(".*/kernel")
    whole = {"wi": {"kernel": jnp.asarray(HEAVY), "bias": None}}
    sent = {"wi": {"kernel": jnp.asarray(HEAVY).sum(1), "bias": None}}
    one, other = (factorize(rows(R), params, choose, f) for f in (whole, sent))
    assert jax.tree.all(jax.tree.map(jnp.allclose, one, other))


def test_f9_full_rank_is_the_kernel():
    for make in (wsvd, rank_one, lambda w, f, r: fwsvd(w, f.sum(1), r)):
        made = make(jnp.asarray(KERNEL), HEAVY, M)
        factor = made[0] if make is wsvd else made
        assert np.abs(factor.materialize() - KERNEL).max() < 1e-9


def test_f10_a_layer_with_a_factor_is_x_a_b_and_the_bias():
    draw = np.random.default_rng(2)
    kernel = jnp.asarray(KERNEL, jnp.float32)
    params = {"kernel": kernel, "bias": jnp.arange(N, dtype=jnp.float32)}
    weights = {"kernel": jnp.asarray(HEAVY), "bias": None}
    new = factorize(entries(R), params, where("kernel"), weights)
    x = jnp.asarray(draw.normal(size=(5, M)), jnp.float32)
    a, b = new["kernel"].a, new["kernel"].b
    want = x @ (a @ b) + params["bias"][None]
    assert jnp.abs(Dense(N).apply({"params": new}, x) - want).max() < 1e-4
    assert a.shape == (M, R) and a.dtype == jnp.float32


def test_f11_the_spread_of_the_weights_foretells_the_gap():
    found = []
    for number in range(24):
        draw = np.random.default_rng(number)
        kernel = draw.normal(size=(12, 10))
        weights = np.exp(number / 10 * draw.normal(size=kernel.shape))
        found.append(
            (spread(weights), svd_gap(jnp.asarray(kernel), weights, 3, iterations=40))
        )
    assert stats.spearmanr(*zip(*found, strict=True)).statistic > 0.8
    assert all(gap >= 1 for _, gap in found)


@pytest.mark.parametrize(
    ("method", "start"),
    [("als", "svd"), ("als", "fwsvd"), ("em", "rank_one"), ("adam_sgd", "rank_one")],
)
def test_it_is_never_worse_than_its_starts(method, start):
    """With few iterations, and in the float32 that is returned."""
    kernel = jnp.asarray(KERNEL, jnp.float32)
    factor, report = wsvd(kernel, HEAVY, R, method=method, start=start, iterations=8)
    found = weighted_loss(kernel, HEAVY, factor)
    for other in (low_rank(kernel, R), fwsvd(kernel, HEAVY.sum(1), R)):
        assert found <= weighted_loss(kernel, HEAVY, other) * (1 + 1e-12)
    assert report.losses[report.chosen] == min(report.losses.values())
    assert len(report.trace) == 9
    assert report.trace[0] == pytest.approx(report.losses[start], rel=1e-5)
    assert found == pytest.approx(report.losses[report.chosen] * HEAVY.mean())


@pytest.mark.parametrize("switch", ["swats", 300])
def test_adam_then_descent_goes_lower_than_adam_began(switch):
    a, b, losses, at = solved("adam_sgd", iterations=1500, switch=switch)
    losses = np.asarray(losses)
    best = losses.min()
    assert float(elementwise.loss(KERNEL, HEAVY / HEAVY.mean(), a, b)) == (
        pytest.approx(best, rel=1e-9)
    )
    assert best < 0.4 * losses[0]
    if switch == 300:
        assert int(at) == 300
        assert losses[301:].min() < losses[:300].min()  # descent goes on down
    else:
        assert int(at) == -1 or int(at) > elementwise.PATIENCE


def test_g1_rows_without_weight_are_projected_as_all_others():
    """Embedding rows that no text had: they cost nothing, and are not lost."""
    weights = HEAVY.copy()
    weights[3], weights[:, 5] = 0, 0
    kernel = jnp.asarray(KERNEL)
    for factor in (
        fwsvd(kernel, weights.sum(1), R),
        rank_one(kernel, weights, R),
        wsvd(kernel, weights, R)[0],
    ):
        found = np.asarray(factor.materialize())
        assert np.isfinite(found).all()
        assert 0.01 < np.linalg.norm(found[3]) < 1.5 * np.linalg.norm(KERNEL[3])
    # All weight on few rows: the directions left over follow the plain kernel.
    few = np.where(np.arange(M) < 2, 1.0, 0.0)
    found = fwsvd(kernel, few, R).materialize()
    left = np.linalg.norm(KERNEL - found)
    assert np.abs(found - KERNEL)[:2].max() < 1e-3
    assert left < 1.1 * np.sqrt(tail(KERNEL[2:], 2))


def test_a_floor_is_of_the_matrix_that_a_row_is_in():
    """Two kernels with unlike scales of weights are one another's business no more."""
    few = np.where(np.arange(M) < 2, 1.0, 0.0)
    stack = jnp.asarray(np.stack([KERNEL, KERNEL]))
    found = fwsvd(stack, np.stack([few, 1e12 * ROWS]), R)
    for number, sums in enumerate((few, ROWS)):
        alone = fwsvd(stack[number], sums, R).materialize()
        assert np.abs(found.materialize()[number] - alone).max() < 1e-6
    with pytest.warns(UserWarning, match="all weights of a kernel are zero"):
        some = fwsvd(stack, np.stack([0 * ROWS, ROWS]), R).materialize()
    plain = svd(jnp.asarray(KERNEL), R).materialize()
    assert np.abs(some[0] - plain).max() < 1e-9


def test_g2_weights_of_zero_warn_and_give_plain_svd():
    plain = np.asarray(svd(jnp.asarray(KERNEL), R).materialize())
    for make in (
        lambda w, f: wsvd(w, f, R)[0],
        lambda w, f: rank_one(w, f, R),
        lambda w, f: fwsvd(w, f.sum(1), R),
    ):
        with pytest.warns(UserWarning, match="all weights of a kernel are zero"):
            found = make(jnp.asarray(KERNEL), 0 * HEAVY)
        assert np.abs(found.materialize() - plain).max() < 1e-9


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-HEAVY, "the least weight is -.*: weights are squares"),
        (np.where(HEAVY > 1, np.nan, HEAVY), "NaN or infinity: measure them again"),
        (np.where(HEAVY > 1, np.inf, HEAVY), "NaN or infinity"),
        (HEAVY.T, r"\(30, 20\) for \(20, 30\).*transpose"),
        (HEAVY[:, :1], r"\(20, 1\) for \(20, 30\)"),
        (None, "no weights were measured"),
    ],
    ids=["g3 negative", "g3 nan", "g3 inf", "g4 turned", "g4 shape", "none"],
)
def test_g3_g4_bad_weights_are_told(weights, message):
    for make in (wsvd, rank_one):
        with pytest.raises(ValueError, match=message):
            make(jnp.asarray(KERNEL), weights, R)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-ROWS, "the least weight is -.*: weights are squares"),
        (np.where(ROWS > 1, np.nan, ROWS), "NaN or infinity: measure them again"),
        (HEAVY.sum(0), r"\(30,\) for \(20,\): each row has one: F.sum\(-1\)"),
        (None, "no weights were measured"),
    ],
    ids=["negative", "nan", "sums of columns", "none"],
)
def test_g3_g4_bad_weights_of_rows_are_told(weights, message):
    with pytest.raises(ValueError, match=message):
        fwsvd(jnp.asarray(KERNEL), weights, R)
    with pytest.raises(ValueError, match=message):
        rows(R)(jnp.asarray(KERNEL), weights)


def test_g3_g4_a_tree_of_weights_is_looked_at_before_its_rows_are_summed():
    """A negative one would be lost in a sum; and the leaf is named."""
    one = HEAVY.copy()
    one[3, 4] = -1e-3
    params = {name: jnp.asarray(KERNEL) for name in ("good", "bad")}
    for wrong, message in ((one, "least weight is -0.001"), (HEAVY.T, "transpose")):
        with pytest.raises(ValueError, match=message) as error:
            weights = {"good": HEAVY, "bad": wrong}
            factorize(rows(R), params, where(".*"), weights)
        assert error.value.__notes__ == ["in factorize, at the leaf 'bad'"]


@pytest.mark.parametrize("rank", [0, M + 1])
def test_g5_a_rank_outside_of_the_range_is_told(rank):
    for make in (wsvd, rank_one, lambda w, f, r: fwsvd(w, f.sum(1), r)):
        with pytest.raises(ValueError, match=f"rank {rank} .* from 1 to 20"):
            make(jnp.asarray(KERNEL), HEAVY, rank)
    with pytest.raises(ValueError, match="less than rank 1"):
        rank_keeping(0.01, KERNEL.shape)


def test_g5_a_kernel_that_nothing_saves_stays_dense_and_says_so():
    params = {"a": jnp.asarray(KERNEL), "b": jnp.asarray(KERNEL[:4, :4])}
    weights = {"a": jnp.asarray(HEAVY), "b": jnp.asarray(HEAVY[:4, :4])}
    new, told = factorize_weighted(params, weights, where("a|b"), R)
    assert is_factor(new["a"]) and told["a"].rank == R
    assert new["b"] is params["b"]
    assert (told["b"].chosen, told["b"].rank) == ("dense", 0)
    only = factorize_weighted({"b": params["b"]}, {"b": None}, where("b"), 3)
    assert only[0]["b"] is params["b"] and only[1]["b"].chosen == "dense"


@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_g6_a_column_with_fewer_weights_than_the_rank(wide):
    """Its normal matrix is singular; the damping keeps it finite, and monotone."""
    weights = HEAVY.copy()
    weights[2:, 7] = 0
    weights[:, 8] = 0
    weights[4, 1:] = 0
    dtype = jnp.float64 if wide else jnp.float32
    start = svd(jnp.asarray(KERNEL, dtype), R)
    given = (jnp.asarray(KERNEL, dtype), jnp.asarray(weights, dtype), start.a, start.b)
    a, b, losses = elementwise.als(*given, iterations=40, ridge=0.0)
    assert jnp.isfinite(a).all() and jnp.isfinite(b).all()
    losses = np.asarray(losses)
    assert (np.diff(losses) <= (1e-12 if wide else 1e-4) * losses[:-1]).all()
    assert np.abs(b[:, 8] - start.b[:, 8]).max() < 1e-6  # nothing asks it to move


def test_g7_weights_from_1e_minus_20_to_1():
    """As float32 has them, whose squares would vanish."""
    draw = np.random.default_rng(2)
    weights = np.float32(10.0 ** draw.uniform(-20, 0, (M, N)))
    kernel = jnp.asarray(KERNEL, jnp.float32)
    for scale in (1.0, 1e-18):
        given = np.float32(scale) * weights
        factor, report = wsvd(kernel, given, R)
        assert np.isfinite(factor.materialize()).all()
        assert report.losses[report.chosen] < 0.2 * report.losses["svd"]
        assert all(np.isfinite(list(report.losses.values())))


def test_g8_a_tied_kernel_is_factored_once():
    """One stage reads another's: one leaf, one factor, the weights of both uses."""
    draw = np.random.default_rng(2)
    table = jnp.asarray(KERNEL, jnp.float32)

    def first(p, s, x, *, key, train):
        return dot(p["kernel"], x), s, {}

    def second(p, s, x, *, key, train, tied):
        kernel = tied["embed"]["kernel"]
        dense = kernel.materialize() if is_factor(kernel) else kernel
        return x @ dense.T, s, {}

    def nothing(key, spec):
        return {}, {}

    model = join(
        [
            Stage("embed", lambda key, spec: ({"kernel": table}, {}), first),
            Stage("out", nothing, second, reads=("embed",)),
        ]
    )
    params, state = model.init(jax.random.key(0), jnp.ones((2, M), jnp.float32))

    def loss(params, x):
        y, _, _ = model.apply(params, state, x, key=None, train=False)
        return jnp.square(y).sum()

    x = jnp.asarray(draw.normal(size=(3, M)), jnp.float32)
    weights = fisher(loss, params, [(x, jnp.ones(3, bool))])
    assert weights["out"] == {}
    new, told = factorize_weighted(params, weights, where(".*/kernel"), R)
    assert list(told) == ["embed/kernel"] and is_factor(new["embed"]["kernel"])
    both = jax.grad(lambda p: loss(p, x[0]))(new)["embed"]["kernel"]
    assert jnp.abs(both.a).max() > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["b", "f"])
def test_g9_squares_of_half_precision_do_not_vanish(dtype):
    """They are float32 before they are squared, and so is their sum."""

    def loss(w, x):
        return (w * x).sum()

    small = jnp.full((4, 1), 1e-5, dtype)
    assert dtype == jnp.bfloat16 or not jnp.square(small).any()
    w, yes = jnp.ones(1, dtype), jnp.ones(1000, bool)
    found = squares(loss, w, small, yes[:4])
    assert found.dtype == jnp.float32
    assert float(found[0]) == pytest.approx(4e-10, rel=0.02)
    # A sum in bfloat16 would stop at 256 ones.
    many = squares(loss, w, jnp.ones((1000, 1), dtype), yes)
    assert float(many[0]) == 1000


def test_bad_wishes_are_told():
    kernel = jnp.asarray(KERNEL)
    with pytest.raises(ValueError, match="method='newton'.*'als'"):
        wsvd(kernel, HEAVY, R, method="newton")
    with pytest.raises(ValueError, match="start='best'.*'rank_one'"):
        wsvd(kernel, HEAVY, R, start="best")
    with pytest.raises(ValueError, match="restarts=2.*key"):
        wsvd(kernel, HEAVY, R, restarts=2)
    with pytest.raises(ValueError, match="iterations=-1.*0 or more"):
        wsvd(kernel, HEAVY, R, iterations=-1)
    with pytest.raises(ValueError, match="one kernel"):
        wsvd(kernel[None], HEAVY[None], R)
    with pytest.raises(ValueError, match="one valid example"):
        fisher(softmax_loss, {"w": kernel}, [])
    with pytest.raises(ValueError, match="'n', which is int32"):
        count = {"n": jnp.ones(2, jnp.int32)}
        fisher(softmax_loss, count, [], where=where("n"))


def test_the_rescue_keeps_plain_svd_where_it_does_not_fail():
    draw = np.random.default_rng(2)
    even = np.exp(0.05 * draw.normal(size=(M, N)))
    params = {"even": jnp.asarray(KERNEL), "heavy": jnp.asarray(KERNEL)}
    weights = {"even": jnp.asarray(even), "heavy": jnp.asarray(HEAVY)}
    new, told = factorize_weighted(params, weights, where(".*"), R)
    assert told["even"].chosen == "svd" and 1 <= told["even"].gap < 1.05
    assert told["heavy"].chosen == "als" and told["heavy"].gap > 3
    plain = svd(params["even"], R)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, new["even"], plain))
    for name in params:  # the fit for `factorize` decides alike
        alike = rescued(R)(params[name], weights[name])
        assert jax.tree.all(jax.tree.map(jnp.array_equal, new[name], alike))
    never = factorize_weighted(params, weights, where(".*"), R, least_spread=0.5)
    assert never[1]["even"].losses == {} and never[1]["heavy"].chosen == "als"
    always = factorize_weighted(params, weights, where("even"), R, least_gap=1.0)
    assert always[1]["even"].chosen == "als"
    stacked = (jnp.stack([*tree.values()]) for tree in (params, weights))
    both = rescued(R)(*stacked)
    for number, name in enumerate(params):
        assert jnp.array_equal(both.a[number], new[name].a)


def test_the_rescue_decomposes_a_kernel_once(monkeypatch):
    """Plainly, by rows, and by rows and columns: what is kept plain was plain then."""
    inner, seen = np.linalg.svd, []

    def counted(a, *args, **options):
        seen.append(np.shape(a))
        return inner(a, *args, **options)

    monkeypatch.setattr(np.linalg, "svd", counted)
    params, weights = {"k": jnp.asarray(KERNEL)}, {"k": jnp.ones((M, N))}
    _, told = factorize_weighted(params, weights, where("k"), R)
    assert told["k"].chosen == "svd" and told["k"].gap < 1.05
    assert seen.count((M, N)) == 3


def test_entries_maps_over_a_stack():
    kernel, weights = (
        jnp.asarray(a.reshape(2, M // 2, N), jnp.float32) for a in (KERNEL, HEAVY)
    )
    whole = entries(R, iterations=10)(kernel, weights)
    for number in range(2):
        one = wsvd(kernel[number], weights[number], R, iterations=10)[0]
        apart = jnp.abs(whole.materialize()[number] - one.materialize()).max()
        assert apart < 1e-5
