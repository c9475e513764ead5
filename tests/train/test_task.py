import jax.numpy as jnp
import pytest

from splitjax.data.benchmarks import BENCHMARKS, GLUE
from splitjax.data.images import IMAGES
from splitjax.metrics.loss import cross_entropy, squared_error
from splitjax.train.task import HEADS, SCORES, TASKS, TOWERS, task, unit_squared_error


@pytest.mark.parametrize("name", [*BENCHMARKS, *GLUE])
def test_every_data_set_by_name_is_a_task(name):
    found = task(name, 0 if name == "stsb" else 2)
    assert found.metric in SCORES and "dev" == found.splits[0]
    assert set(found.splits) <= {"dev", "test"}
    assert ("test" in found.splits) == (name in BENCHMARKS)  # GLUE keeps its labels


def test_a_task_is_scored_as_its_benchmark_is():
    assert task("stsb", 0).metric == "spearman" and task("cola", 2).metric == "matthews"
    assert task("sst2", 2).metric == "accuracy"
    assert task("stsb", 0).loss is unit_squared_error
    assert task("sst2", 2).loss is cross_entropy
    assert set(TASKS) == {*BENCHMARKS, *GLUE, *IMAGES, "digits"}
    assert {task(name, 10).splits for name in IMAGES} == {("test",)}
    assert task("cifar10", 10).loss is cross_entropy


def test_data_of_the_users_follows_its_labels():
    classes, values = task("mine.csv", 3), task("mine.csv", 0)
    assert (classes.metric, classes.loss) == ("accuracy", cross_entropy)
    assert (values.metric, values.loss) == ("spearman", squared_error)
    assert classes.splits == values.splits == ("dev",)
    assert set(TOWERS) <= set(HEADS)


def test_a_similarity_is_a_fifth_of_the_label():
    target = {"y": jnp.array([5.0, 2.5, 0.0]), "n_valid": jnp.int32(2)}
    value, _ = unit_squared_error(jnp.array([1.0, 0.0, 9.0]), target)
    assert float(value) == pytest.approx((0 + 0.25) / 2)
    assert target["y"][0] == 5.0
