"""Merak (arXiv 2206.04959): what its schedules, cuts and recomputation promise.

Its speeds were measured on 64 GPUs and cannot be held here; its rules can: when a
schedule ends, how many micro-batches a stage holds, which stage recomputes how much,
and that a cut found from costs beats one into equal numbers of blocks.
"""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.keys import fold
from splitjax.core.stage import join
from splitjax.metrics.perplexity import next_symbol
from splitjax.models.decoder import decoder
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.pretrained import start
from splitjax.parallel.border import borders
from splitjax.parallel.cost import block_costs
from splitjax.parallel.machine import Machine
from splitjax.parallel.mpmd import mpmd
from splitjax.parallel.partition import even
from splitjax.parallel.recompute import counts, stage_ratios
from splitjax.parallel.schedule import schedule
from splitjax.parallel.stages import staged
from splitjax.parallel.timeline import simulate

MICRO, ROWS, TOKENS = 4, 2, 8
# As SmolLM2's: the head is several times as dear as a layer.
CONFIG = DecoderConfig(
    vocab=256, width=8, heads=2, kv_heads=1, layers=4, ffn=16, positions=16
)


@pytest.fixture(scope="module")
def model():
    stages = decoder(CONFIG)
    spec = {
        "ids": jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32),
        "mask": jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.bool_),
    }
    return stages, *start(stages, {}, key=jax.random.key(0), spec=spec), spec


@pytest.fixture(scope="module")
def facts(model):
    return block_costs(*model), borders(*model)


def batch(number):
    ids = jax.random.randint(
        fold(jax.random.key(1), number), (ROWS, TOKENS + 1), 0, CONFIG.vocab
    )
    x = {"ids": ids[:, :-1], "mask": jnp.ones((ROWS, TOKENS), bool)}
    return x, {"y": ids[:, 1:], "n_valid": jnp.int32(ROWS)}


def test_the_shifted_path_saves_what_the_rule_says():
    """p + 2 units of (n + p - 1) 4, for one micro-batch more on one stage."""
    for p, n in ((4, 8), (8, 16), (8, 32)):
        plain, shifted = (simulate(schedule(p, n, k)) for k in ("1f1b", "shifted"))
        assert plain.makespan - shifted.makespan == p + 2
        more = np.subtract(shifted.in_flight, plain.in_flight)
        assert more.tolist() == [0] * (p - 2) + [1, 0]


def test_stage_aware_ratios_level_what_stages_hold():
    """A stage holds the blocks it keeps, times its micro-batches that wait."""
    ratios = stage_ratios(Fraction(3, 4), 4)
    kept = [(1 - ratio) * (3 - s) for s, ratio in enumerate(ratios[:-1])]
    assert kept == [Fraction(3, 4)] * 3
    assert counts(ratios, [8, 8, 8, 8]) == (6, 5, 2, 0)


def test_the_plan_beats_equal_numbers_of_blocks(facts):
    """Foretold; the head and the embedding are what makes this model uneven."""
    blocks, between = facts

    def at(cuts=None):
        how = dict(micro=MICRO, pipe=3, cuts=cuts)
        return staged(blocks, between, Machine(1.0), **how)

    found, other = at(), at(even(len(blocks), 3))
    assert found.seconds < 0.9 * other.seconds
    assert found.stages[-1].blocks < other.stages[-1].blocks
    places = itertools.combinations(range(1, len(blocks)), 2)
    assert found.seconds == min(at(cuts).seconds for cuts in places)
    heaviest = max(blocks, key=lambda block: block.forward_flops)
    assert heaviest.name == "head" and heaviest.parameter_bytes == 0
    assert all(border.legal for border in between)


def test_it_may_be_cut_everywhere_but_the_embedding_is_shared(facts):
    _, between = facts
    assert {border.tied for border in between} == {("embed/word/embedding",)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["1f1b", "shifted"])
def test_a_plan_runs_as_it_says(kind, model, facts):
    """Loss and gradients of one device; no stage holds more than was planned."""
    stages, params, state, _ = model
    plan = staged(*facts, Machine(1.0), micro=MICRO, pipe=3, kind=kind, first_ratio=0.5)
    pipe = mpmd(
        stages,
        next_symbol,
        cuts=plan.cuts,
        homes=jax.devices()[:3],
        micro=MICRO,
        kind=kind,
        recompute=plan.recompute,
    )
    batches = [batch(number) for number in range(MICRO)]
    (value, extra), grads = pipe.value_and_grad(*pipe.put(params, state), batches)
    whole = join(stages)

    @jax.jit
    @jax.value_and_grad
    def alone(params, x, target):
        y, _, _ = whole.apply(params, state, x, key=None, train=True)
        return next_symbol(y, target)[0]

    made = [alone(params, *one) for one in batches]
    np.testing.assert_allclose(value, sum(v for v, _ in made) / MICRO, rtol=1e-6)
    mean = jax.tree.map(lambda *g: sum(g) / MICRO, *[g for _, g in made])
    # float32 sums in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        pipe.gathered(grads),
        mean,
    )
    planned = [stage.in_flight for stage in plan.stages]
    assert list(extra["in_flight"]) == planned
    assert (
        extra["done"]
        == pipe.lists
        == schedule(3, MICRO, kind, recompute=[c > 0 for c in plan.recompute])
    )
