import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.codecs import quantize
from splitjax.core.codec import Link, chain
from splitjax.core.tree import spec_of
from splitjax.factors.low_rank import squeeze_params
from splitjax.models.bert import bert
from splitjax.models.bert_config import BertConfig
from splitjax.models.pretrained import start
from splitjax.models.squeeze import Squeeze
from splitjax.train.distill import distill, hidden_error

CONFIG = BertConfig(
    vocab=30, width=16, heads=2, layers=2, ffn=32, positions=12, init_std=0.2
)
LINK = Link(chain(quantize(8)), chain())


def batches():
    random = np.random.default_rng(0)
    while True:
        lengths = random.integers(2, 9, 8)
        yield {
            "ids": random.integers(0, 30, (8, 8)).astype(np.int32),
            "mask": np.arange(8)[None] < lengths[:, None],
        }


@pytest.fixture(scope="module")
def models():
    """Teacher, student, and the parameters and state of both."""
    teacher, student = bert(CONFIG), bert(CONFIG, squeeze={0: Squeeze(4)})
    spec, key = spec_of(next(batches())), jax.random.key(0)
    params, state = start(teacher, {}, key=key, spec=spec)
    edge, cloud = squeeze_params(params["layer_0/ffn"], 4)
    given = {**params, "layer_0/squeeze": edge, "layer_0/expand": cloud}
    more = start(student, given, key=key, spec=spec)
    return teacher, student, {**params, **more[0]}, {**state, **more[1]}


@pytest.fixture(scope="module")
def taught(models):
    """What 40 steps learn, and their losses."""
    kwargs = dict(link=LINK, batches=batches(), steps=40, learning_rate=1e-2)
    return distill(*models, **kwargs)


def test_the_error_falls(taught):
    _, losses = taught
    assert len(losses) == 40 and np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])


def test_what_comes_before_the_cut_is_shared_and_stays(models, taught):
    _, student, params, _ = models
    learned = taught[0]
    before = {"embed", "layer_0/attention"}
    assert set(learned) == {stage.name for stage in student} - before
    for name, leaves in learned.items():
        pairs = zip(jax.tree.leaves(leaves), jax.tree.leaves(params[name]), strict=True)
        assert any((one != other).any() for one, other in pairs), name


def test_fewer_batches_end_it_earlier(models):
    few = itertools.islice(batches(), 2)
    kwargs = dict(link=LINK, batches=few, steps=40, learning_rate=1e-2)
    _, losses = distill(*models, **kwargs)
    assert len(losses) == 2


def test_a_student_that_is_the_teacher_is_refused(models):
    teacher, _, params, state = models
    kwargs = dict(link=LINK, batches=batches(), steps=1, learning_rate=1e-2)
    with pytest.raises(ValueError, match="same stages: nothing to learn"):
        distill(teacher, teacher, params, state, **kwargs)


def test_the_error_is_a_share_of_the_real_tokens_and_of_their_mean():
    mask = jnp.array([[True, True, False]])
    target = {"h": jnp.full((1, 3, 2), 2.0), "mask": mask}

    def error(h):
        return float(hidden_error({"h": jnp.asarray(h)}, target)[0])

    assert error(target["h"]) == 0.0 and error(0 * target["h"]) == 2.0
    assert error(target["h"].at[:, 2].set(99.0)) == 0.0
    assert error(target["h"].at[:, 0].set(3.0)) == pytest.approx(2 / 16 + 0.5 / 8)
