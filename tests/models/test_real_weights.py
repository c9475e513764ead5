"""The whole way from texts to a score, with the weights that people use."""

import jax
import numpy as np
import pytest

from splitjax import data
from splitjax.core.stage import join
from splitjax.core.tree import spec_of
from splitjax.data.batches import model_inputs
from splitjax.metrics.score import spearman
from splitjax.models import heads
from splitjax.models.bert import bert
from splitjax.models.folder import read_config
from splitjax.models.pretrained import load, start

SCORES = {"minilm": 0.8203, "mpnet": 0.83422}  # mean pooling and cosine, float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.real(n, "stsb")) for n in SCORES]
)
def test_similarities_of_the_stsb_test_set(name, need_data, key):
    folder = need_data(name)
    table = data.load("stsb", "test", fetch=False)
    encoded = data.Tokenizer(folder).encode(table, towers=True)
    assert len(table) == 1379
    stages = bert(read_config(folder), heads.pair_cosine())
    model, params, state = join(stages), None, None
    predicted = np.full(len(table), np.nan)
    run = jax.jit(lambda p, s, x: model.apply(p, s, x, key=None, train=False)[0])
    for [batch] in data.Batches(encoded, 64, group_by_length=True).epoch(0):
        x = model_inputs(batch)
        if params is None:
            params, state = start(stages, load(folder), key=key, spec=spec_of(x))
        rows = batch["n_valid"]
        predicted[batch["index"][:rows]] = run(params, state, x)[:rows]
    assert np.isfinite(predicted).all()
    # The order of near neighbors may turn on another device; a wrong token, mask or
    # pooling costs a hundredth.
    assert spearman(predicted, table.label) == pytest.approx(SCORES[name], abs=5e-4)
