import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.optim.decay import decayed
from splitjax.train.experiment import Experiment
from splitjax.train.finetune import Finetune


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="whole"), "mode='whole': it must be one of .*'unsplit'"),
        (dict(schedule="step"), "schedule='step': it must be one of .*'cosine'"),
        (dict(epochs=0), "epochs=0: it must be 1 or more"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(micro=0), "micro=0"),
        (dict(in_flight=0), "in_flight=0"),
        (dict(micro=2, in_flight=3), "in_flight=3 is more than micro=2"),
        (dict(seeds=()), "seeds is empty"),
        (dict(dtype="float64"), "dtype='float64'.*'bfloat16'"),
        (dict(label_side="both"), "label_side='both'"),
        (dict(bridge="fft"), "bridge='fft'"),
        (dict(head="lm"), "head='lm'.*'classification'"),
        (dict(metric="bleu"), "metric='bleu'.*'spearman'"),
        (dict(squeeze=False), "needs a place to cut"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options, message):
    Finetune().validate()
    with pytest.raises(ValueError, match=message):
        Finetune(**options).validate()


def test_an_unsplit_run_needs_no_place_to_cut():
    Finetune(squeeze=False, mode="unsplit").validate()
    Finetune(squeeze=False, after=("layer_0",)).validate()


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)],
)
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_the_rate_rises_then_falls(schedule, middle, end, warmup):
    """With a constant gradient, Adam's update is the rate itself."""
    peak, steps = 0.5, 20
    given = dict(learning_rate=peak, schedule=schedule, warmup=warmup)
    tx = Experiment(**given, weight_decay=0.0, clip=0.0).tx(steps)
    params, rates = {"w": jnp.ones(())}, []
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(params)
        update = jax.jit(tx.update)
        for _ in range(steps + 1):
            updates, state = update({"w": jnp.ones(())}, state, params)
            rates.append(-float(updates["w"]))
    top = round(warmup * steps)
    assert rates[0] == pytest.approx(0.0 if top else peak, abs=1e-4)
    assert rates[top] == pytest.approx(peak, rel=1e-4)
    assert rates[(top + steps) // 2] == pytest.approx(middle * peak, rel=1e-3)
    assert rates[steps] == pytest.approx(end * peak, abs=1e-4)
    assert np.argmax(np.round(rates, 4)) == top
    if top:
        np.testing.assert_allclose(np.diff(rates[: top + 1]), peak / top, rtol=1e-3)


def test_the_unsplit_run_may_have_a_rate_of_its_own():
    """And is then the run that it would be with that rate alone."""
    both = Finetune(learning_rate=1e-4, unsplit_rate=5e-5)
    alone = Finetune(learning_rate=5e-5, mode="unsplit")
    unsplit = dataclasses.replace(both, mode="unsplit")
    assert unsplit.identity(0) == alone.identity(0)
    assert both.identity(0) == Finetune(learning_rate=1e-4).identity(0)
    params = {"w": jnp.ones(())}
    updates = []
    for experiment in (unsplit, alone, both):
        given = dict(warmup=0.0, weight_decay=0.0, clip=0.0)
        tx = dataclasses.replace(experiment, **given).tx(10)
        with jax.numpy_dtype_promotion("standard"):
            made, _ = tx.update(params, tx.init(params), params)
        updates.append(float(made["w"]))
    assert updates[0] == updates[1] == pytest.approx(-5e-5, rel=1e-4)
    assert updates[2] == pytest.approx(-1e-4, rel=1e-4)


def test_the_gradient_is_clipped_before_adam_sees_it():
    """Two gradients that are the same when clipped give the same moments."""
    tx = Experiment(clip=1.0).tx(10)
    params = {"w": jnp.ones((2, 2))}
    with jax.numpy_dtype_promotion("standard"):
        states = [
            tx.update({"w": jnp.full((2, 2), size)}, tx.init(params), params)[1]
            for size in (2.0, 200.0)
        ]
    jax.tree.map(np.testing.assert_allclose, *states)


def test_sgd_has_momentum_and_decay():
    """Two steps: g + wd p, then 0.9 times that and the next."""
    given = dict(learning_rate=0.1, schedule="constant", warmup=0.0, clip=0.0)
    tx = Experiment(optimizer="sgd", weight_decay=0.5, **given).tx(10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = jax.tree.map(lambda p: 2 * jnp.ones_like(p), params)
    opt, seen = tx.init(params), []
    for _ in range(2):
        updates, opt = tx.update(grads, opt, params)
        seen.append([float(updates[name].ravel()[0]) for name in ("kernel", "bias")])
    np.testing.assert_allclose(seen, [[-0.25, -0.2], [-0.475, -0.38]], rtol=1e-6)
    with pytest.raises(ValueError, match="optimizer='adam'.*'sgd'"):
        Experiment(optimizer="adam").validate()


def test_decay_is_for_kernels_and_embeddings():
    leaves = {
        "kernel": jnp.ones((2, 2)),
        "bias": jnp.ones(2),
        "experts": {"bias": jnp.ones((3, 2))},
        "scale": jnp.ones(2),
        "relative_bias": {"embedding": jnp.ones((4, 2))},
        "word": {"embedding": jnp.ones((4, 2))},
    }
    chosen = decayed({"layer": leaves})["layer"]
    assert chosen == {
        "kernel": True,
        "bias": False,
        "experts": {"bias": False},
        "scale": False,
        "relative_bias": {"embedding": False},
        "word": {"embedding": True},
    }
    tx = Experiment(learning_rate=1.0, weight_decay=0.1, warmup=0.0).tx(10)
    with jax.numpy_dtype_promotion("standard"):
        still = jax.tree.map(jnp.zeros_like, leaves)
        updates, _ = tx.update(still, tx.init(leaves), leaves)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-6)
    assert not updates["bias"].any()
    assert not updates["relative_bias"]["embedding"].any()


def test_watching_a_run_does_not_make_it_another():
    one = Finetune().identity(0)
    assert one["experiment"] == "Finetune" and one["seed"] == 0
    seen = dict(compare=True, seeds=(4,), eval_every=2, checkpoint_every=9, debug=True)
    assert Finetune(**seen, profile=3).identity(0) == one
    assert Finetune().identity(1) != one
    names = {field.name for field in dataclasses.fields(Finetune)}
    assert set(Finetune.WATCHING) <= names
    second = {name for name in names if name.startswith("kfac_")}  # of "kfac" alone
    own = {"precision", "layers", "dropout"}  # where they change the model
    free = {*Finetune.WATCHING, "unsplit_rate", *own, *second}
    assert set(Finetune(optimizer="kfac").identity(0)) == set(one) | second
    assert set(one) == names - free | {"experiment", "seed"}
    changed = Finetune(layers=1, dropout=False).identity(0)
    assert changed == one | {"layers": 1, "dropout": False}
    assert Finetune(rank=9).identity(0) != one
    whole = Finetune(mode="unsplit").identity(0)
    assert set(Finetune.OF_THE_CUT) == set(one) - set(whole)
    assert Finetune(mode="unsplit", rank=9, fit_steps=7).identity(0) == whole
    for more in (dict(learning_rate=1.0), dict(send_once=True), dict(micro=2)):
        assert Finetune(mode="unsplit", **more).identity(0) != whole


def test_an_experiment_without_parts_says_so():
    with pytest.raises(NotImplementedError, match="Experiment defines no parts"):
        Experiment().parts(0)
