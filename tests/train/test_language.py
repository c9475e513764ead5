import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.data.examples import first_examples
from splitjax.factors.fisher import fisher
from splitjax.train.language import Language, open_model, scorer, window_loss


@pytest.fixture(scope="module")
def options(tiny_language):
    folder, text = tiny_language
    sizes = dict(split="train", tokens=22, window=8, batch_size=2)
    return Language(model=str(folder), corpus=str(text), **sizes)


@pytest.fixture(scope="module")
def opened(options):
    return open_model(options.model)


@pytest.fixture(scope="module")
def losses(options, opened):
    """Nats of each predicted token, an array for each window, by hand."""
    windows, model = options.windows(opened.tokenizer), opened.model
    symbols = windows.stream.symbols
    starts = range(0, len(symbols) - 1, 8)
    ids = np.stack([np.resize(symbols[i : i + 8], 8) for i in starts])
    x = {"ids": jnp.asarray(ids), "mask": jnp.ones(ids.shape, bool)}

    @jax.jit
    def run(params):
        y, _, _ = model.apply(params, opened.state, x, key=None, train=False)
        return jax.nn.log_softmax(y)

    logs, out = np.asarray(run(opened.params), np.float64), []
    for row, start in enumerate(starts):
        following = symbols[start + 1 : start + 9]
        out.append(-logs[row, np.arange(len(following)), following])
    return out


def test_the_perplexity_is_of_all_tokens_but_the_first(options, opened, losses):
    windows = options.windows(opened.tokenizer)
    found = scorer(opened)(opened.params, windows)
    by_hand = np.concatenate(losses)
    assert found["tokens"] == len(by_hand) == 21
    assert found["nats"] == pytest.approx(by_hand.mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(by_hand.mean()), rel=1e-5)


def test_the_fisher_is_of_single_windows(options, opened, losses):
    windows, loss = options.windows(opened.tokenizer), window_loss(opened)
    steps = list(first_examples(windows.epoch(0, shuffle=False), 3))
    assert [valid.tolist() for _, valid in steps] == [[True, True], [True, False]]
    place = "layer_0/ffn"
    each = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))
    values, squares = [], []
    for window, valid in steps:
        value, grad = each(opened.params, window)
        values.append(value[valid])
        squares.append(jnp.square(grad[place]["wi"]["kernel"])[valid])
    wanted = [value.mean() for value in losses]
    np.testing.assert_allclose(np.concatenate(values), wanted, rtol=1e-5)
    found = fisher(loss, opened.params, steps, chunk=1)[place]["wi"]["kernel"]
    mean = np.concatenate(squares).mean(0)
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-9)
    one = first_examples(windows.epoch(0, shuffle=False), 1)
    assert [valid.sum() for _, valid in one] == [1]


def test_options_that_make_no_sense_are_refused(options, tmp_path):
    for name, value in (("tokens", 1), ("window", 0), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}: it must be"):
            dataclasses.replace(options, **{name: value}).validate()
    with pytest.raises(ValueError, match="split='valid': it must be one of"):
        dataclasses.replace(options, split="valid").validate()
    options.validate()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        open_model(str(tmp_path))


@pytest.mark.slow
@pytest.mark.real("smollm2", "wikitext2")
def test_smollm2_on_the_first_tokens_of_wikitext2():
    options = Language(tokens=1024)
    opened = open_model(options.model)
    found = scorer(opened)(opened.params, options.windows(opened.tokenizer))
    # What Hugging Face's model gives on the same tokens.
    assert found["tokens"] == 1023
    assert found["perplexity"] == pytest.approx(13.8215, abs=2e-3)
