import itertools
import random

import pytest

from splitjax.parallel.partition import chosen, even, groups, min_max

TOO_LARGE = {2, 3, 4, 6, 8, 17}  # seeds of whose cuts none fits
NAMES = ["embed", "layer_0/attention", "layer_0/ffn", "layer_1/ffn", "norm", "head"]


def worst(costs, cuts):
    return max(sum(costs[i] for i in group) for group in groups(cuts, len(costs)))


def all_cuts(count, stages, legal=None):
    places = range(1, count) if legal is None else sorted(legal)
    return itertools.combinations(places, stages - 1)


@pytest.mark.parametrize("count", range(1, 13))
def test_the_programme_finds_what_brute_force_finds(count):
    chance = random.Random(count)
    for stages in range(1, count + 1):
        costs = [chance.randint(0, 9) for _ in range(count)]
        best = min(all_cuts(count, stages), key=lambda cuts: (worst(costs, cuts), cuts))
        found = min_max(costs, stages)
        assert worst(costs, found) == worst(costs, best)


@pytest.mark.parametrize("seed", range(20))
def test_it_keeps_to_legal_cuts_and_to_the_memory(seed):
    """Room shrinks from stage to stage, as activations in flight do not."""
    chance = random.Random(seed)
    count, stages = 10, 3
    costs = [chance.randint(1, 9) for _ in range(count)]
    sizes = [chance.randint(1, 9) for _ in range(count)]
    legal = chance.sample(range(1, count), 6)
    room = [30, 20, 15]

    def fits(stage, first, end):
        return sum(sizes[first:end]) <= room[stage]

    def allowed(cuts):
        spans = enumerate(groups(cuts, count))
        return all(fits(s, span.start, span.stop) for s, span in spans)

    options = [cuts for cuts in all_cuts(count, stages, legal) if allowed(cuts)]
    assert bool(options) == (seed not in TOO_LARGE)
    if seed in TOO_LARGE:
        with pytest.raises(ValueError, match="fits the memory"):
            min_max(costs, stages, legal=legal, fits=fits)
        return
    found = min_max(costs, stages, legal=legal, fits=fits)
    assert found in options
    assert worst(costs, found) == min(worst(costs, cuts) for cuts in options)


def test_a_dear_block_moves_the_cut():
    assert min_max([1] * 8, 2) == (4,)
    assert min_max([1] * 7 + [10], 2) == (7,)
    assert min_max([10] + [1] * 7, 2) == (1,)
    assert min_max([1, 1, 10, 1, 1, 1, 1, 1], 2) == (3,)


def test_sums_are_exact():
    """0.1 + 0.2 is more than 0.3 in floats that are rounded at each step."""
    assert min_max([0.1] * 6, 2) == (3,) and min_max([1e16, 1.0, 1.0, 1e16], 2) == (2,)


@pytest.mark.parametrize(
    ("costs", "stages", "how", "message"),
    [
        ([1, 1], 3, {}, "2 blocks have 1 legal cuts, and 3 stages need 2"),
        ([1, 1, 1], 3, {"legal": [1]}, "3 blocks have 1 legal cuts"),
        ([1, 1, 1], 2, {"legal": [3]}, "legal cuts of 3 blocks are 1 to 2"),
        ([1, 1], 0, {}, "one stage or more"),
        ([1, -1], 2, {}, "costs of 0 or more"),
        ([], 1, {}, "0 blocks"),
    ],
)
def test_what_cannot_be_cut_is_told(costs, stages, how, message):
    with pytest.raises(ValueError, match=message):
        min_max(costs, stages, **how)


def test_even_cuts_count_blocks():
    assert even(62, 4) == (16, 32, 47)
    assert even(4, 1) == ()
    with pytest.raises(ValueError, match="3 blocks do not make 4"):
        even(3, 4)


def test_cuts_of_ones_own():
    assert chosen(["embed", "layer_0", "norm"], NAMES) == (1, 3, 5)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (["layer_O"], "did you mean"),
        (["head"], "nothing is left"),
        (["layer_0", "embed"], "cuts must increase: 'embed' .* after 'layer_0'"),
        (["embed", "embed"], "cuts must increase"),
        (["norm"], "later blocks read more"),
    ],
)
def test_wrong_cuts_are_told(after, message):
    with pytest.raises(ValueError, match=message):
        chosen(after, NAMES, legal={1, 2, 3})
