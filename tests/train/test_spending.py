"""Runs whose links have noise say what they spend, and keep its key to themselves."""

import logging

import jax
import numpy as np
import pytest

from splitjax.codecs import feedback, randomize
from splitjax.privacy import Spent, epsilon_renyi
from splitjax.runtime.certificates import make_certificates
from splitjax.runtime.cloud import Cloud
from splitjax.runtime.outbox import Outbox
from splitjax.train import loop, runs, spending
from splitjax.train.drivers import ToCloud
from splitjax.train.processes import Door
from splitjax.train.serve import build, run_key

BITS = "ragged() + sign() + randomize(2.0) + pack_signs()"


def test_a_run_prints_its_budget_and_sums_it_up(options, watch, tmp_path, caplog):
    """Rank 4, 8 tokens at most: 32 bits in an epoch, which counts when it is begun."""
    caplog.set_level(logging.INFO)
    seen = watch(options(forward=BITS, steps=1), tmp_path)
    [row] = seen.summary["privacy"]
    assert (row["link"], row["direction"], row["messages"]) == (0, "forward", 1)
    assert row["releases"] == 32 and row["epsilon_basic"] == 64.0
    spent = [Spent(randomize(2.0).mechanism, 32)]
    assert row["epsilon_renyi"] == epsilon_renyi(spent, 1e-5) < 64
    assert row["delta"] == 1e-5
    assert row["without_noise"] == ["labels", "norm of the edge's gradient"]
    [line] = [r.getMessage() for r in caplog.records if "privacy" in r.getMessage()]
    assert "epsilon 64 (basic)" in line and "32 x randomized_response(2)" in line
    sent = [m for kind, way, m in seen.sent if (kind, way) == ("predict", "up")]
    assert len(sent) > 1


def test_scores_have_noise_too_and_never_the_same(options, tmp_path):
    """Equal noise in two messages would cancel in their difference."""
    forward = "ragged() + perturb('gauss', scale=10.0, clip=0.1)"
    run = runs.open_run(options(forward=forward), 0, tmp_path)
    [batch] = next(iter(run.parts.evals["dev"].epoch(0, shuffle=False)))
    x = spending.model_inputs(batch)
    first, second = (np.asarray(run.driver.predict(run.state, x)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-6


def test_two_processes_that_predict_at_one_checkpoint_share_no_noise(options, tmp_path):
    """As `evaluate`, and `predict` after it: each counts its predictions anew."""
    forward, heard = "ragged() + perturb('gauss', scale=10.0, clip=0.1)", []
    for turn in (1, -1):
        run = runs.open_run(options(forward=forward), 0, tmp_path)
        [batch] = next(iter(run.parts.evals["dev"].epoch(0, shuffle=False)))
        x = {name: a[::turn] for name, a in spending.model_inputs(batch).items()}
        ship = run.driver._ship

        def spied(tree, kind, direction, *place, ship=ship, **more):
            if direction == "up":
                heard.append(jax.device_get(jax.tree.leaves(tree)[0]))
            return ship(tree, kind, direction, *place, **more)

        run.driver._ship = spied
        run.driver.predict(run.state, x)
    one, two = heard
    assert one.shape == two.shape and np.abs(one - two).max() > 1


def test_a_run_without_noise_says_nothing(options, tmp_path):
    made = options(forward="ragged() + binary()")
    assert spending.spending(made, made.parts(0), epochs=1) == []


def test_an_edge_keeps_a_key_of_its_own_where_there_is_noise(options, tmp_path):
    noisy, plain = (options(forward=f).parts(0) for f in (BITS, "ragged()"))
    folder, key = tmp_path / "run", run_key(0)
    assert spending.own_key(plain, key, folder) is key and not folder.exists()
    data = jax.random.key_data(spending.own_key(noisy, key, folder))
    file = folder / "noise.key"
    assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_size == 8
    again = jax.random.key_data(spending.own_key(noisy, key, folder))
    np.testing.assert_array_equal(data, again)  # a run that goes on
    other = jax.random.key_data(spending.own_key(noisy, key, tmp_path / "other"))
    assert (data != other).any() and (data != jax.random.key_data(key)).any()
    file.write_bytes(b"short")
    with pytest.raises(ValueError, match="5 bytes"):
        spending.own_key(noisy, key, folder)


def test_noise_and_a_memory_do_not_mix():
    with pytest.raises(ValueError, match="later messages"):
        feedback(randomize(1.0))


def test_the_chance_must_be_one(options):
    with pytest.raises(ValueError, match="privacy_delta"):
        options(privacy_delta=0.0).validate()


@pytest.mark.slow
def test_a_cloud_with_the_seed_cannot_make_the_noise(options, tmp_path, monkeypatch):
    """Over gRPC: both halves learn, and two edges of one seed flip unlike bits."""
    keys = make_certificates(tmp_path / "keys")
    experiment = options(forward=BITS, steps=1)
    sent, post = [], Outbox.post_tree

    def spied(outbox, key, schema, tree):
        if key[0] == "train" and "m" in tree:
            sent.append(jax.device_get(tree["m"]))
        post(outbox, key, schema, tree)

    monkeypatch.setattr(Outbox, "post_tree", spied)
    for name in ("one", "two"):
        cloud = Cloud(build(experiment), tmp_path / f"cloud_{name}")
        with Door("127.0.0.1:0", str(keys / "cloud")).open(cloud) as server:
            there = ToCloud(Door(f"127.0.0.1:{server.port}", str(keys / "edge_0")).dial)
            folder = tmp_path / name
            done = loop.train(experiment, 0, folder, cloud=there, progress=False)
        assert done["privacy"][0]["releases"] == 32
        assert (folder / "noise.key").exists()
    one, two = (jax.tree.leaves(message) for message in sent)
    assert all(a.shape == b.shape for a, b in zip(one, two, strict=True))
    assert any((a != b).any() for a, b in zip(one, two, strict=True))
