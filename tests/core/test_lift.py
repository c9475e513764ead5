import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.codec import Codec, Context, chain, message_spec
from splitjax.core.lift import Encoded, on_leaves, on_tree
from splitjax.core.message import Sized
from splitjax.core.tree import spec_of


def divide(by: float, name="divide", **kwargs) -> Codec:
    """Powers of two, so that what comes back is equal to the bit."""
    return on_leaves(
        lambda x, used, ctx, i: (
            {"small": x / by, "number": jnp.int32(i)}
            if used is None
            else {"small": Sized(x / by, used), "number": jnp.int32(i)}
        ),
        lambda node: (
            jax.tree.map(lambda a: a * by, node["small"])
            if not isinstance(node["small"], Sized)
            else Sized(node["small"].buffer * by, node["small"].used)
        ),
        name=name,
        **kwargs,
    )


def counter(name: str) -> Codec:
    """Adds to a float the number of messages so far; both ends count."""

    def step(sign):
        def run(x, state, ctx=None):
            return x + sign * state["sent"], {"sent": state["sent"] + 1}

        return run

    def init(spec):
        assert spec.shape == (2,)
        return {"sent": jnp.float32(0)}

    return Codec(init, step(1), step(-1), name=name)


TREE = {
    "h": jnp.array([1.5, -2.0]),
    "deep": [jnp.ones((2, 2)), Sized(jnp.ones((3, 1)), jnp.int32(2))],
    "ids": jnp.arange(3),
    "mask": jnp.array([True, False]),
    "none": None,
}


def there_and_back(codec, tree):
    message, _ = codec.encode(tree, codec.init(spec_of(tree)), Context())
    return message, codec.decode(message, codec.init(spec_of(tree)))[0]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_leaves_are_numbered_and_integers_cross_as_they_are():
    message, y = there_and_back(divide(4), TREE)
    same(y, TREE)
    marks = [node for node in (message["h"], *message["deep"])]
    assert all(isinstance(node, Encoded) and node.by == "divide" for node in marks)
    numbers = [int(node.node["number"]) for node in marks]
    assert len(set(numbers)) == 3
    assert message["ids"] is TREE["ids"] and message["mask"] is TREE["mask"]
    assert message["h"].node["small"].tolist() == [0.375, -0.5]


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")], ids="-".join)
def test_lifted_codecs_stand_in_a_chain(names):
    """Also twice the same: each undoes what it did itself, the last one first."""
    first, second = names
    codec = chain(divide(2, first), divide(8, second))
    message, y = there_and_back(codec, TREE)
    same(y, TREE)
    inner = message["h"].node["small"]
    assert inner.by == second and inner.node["small"].tolist() == [1.5 / 16, -2 / 16]


def test_each_entry_has_its_codec_and_its_state():
    codec = on_tree({"a": counter("one"), "b": counter("two")})
    assert codec.name == "a:one,b:two" and not codec.smooth
    tree = {"a": jnp.zeros(2), "b": jnp.ones(2), "c": jnp.full(2, 9.0)}
    tx = rx = codec.init(spec_of(tree))
    assert set(tx) == {"a", "b"}
    for _ in range(3):
        message, tx = codec.encode(tree, tx, Context())
        y, rx = codec.decode(message, rx)
        same(y, tree)
        same(message["c"], tree["c"])
    assert message["a"].tolist() == [2, 2] and message["b"].tolist() == [3, 3]
    same(tx, rx)


def test_smooth_parts_of_entries_come_first():
    smooth, rough = divide(2, "s", smooth=True), divide(2, "r")
    assert on_tree({"a": smooth}).smooth
    assert not on_tree({"a": rough}).smooth
    both = on_tree({"a": chain(smooth, rough), "b": smooth, "c": rough})
    assert [(p.name, p.smooth) for p in both.parts] == [
        ("a:s,b:s,c:identity", True),
        ("a:r,b:identity,c:r", False),
    ]
    tree = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    message, y = there_and_back(both, tree)
    same(y, tree)
    assert message["a"].node["small"].by == "r"
    with pytest.raises(ValueError, match="smooth ones first"):
        on_tree({"a": chain(rough, smooth)})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"hh": jnp.ones(2)}, "no entry 'h': did you mean 'hh'"),
        ({}, "no entry 'h'"),
        ([jnp.ones(2)], "no entry 'h'.*list"),
    ],
    ids=str,
)
def test_a_missing_entry_is_named_at_both_ends(tree, words):
    codec = on_tree({"h": divide(2)})
    for use in (
        lambda: codec.init(spec_of(tree)),
        lambda: codec.encode(tree, {"h": ()}, Context()),
        lambda: codec.decode(tree, {"h": ()}),
    ):
        with pytest.raises(ValueError, match=words):
            use()


def test_the_callers_dict_is_not_written_to():
    tree = {"h": jnp.ones(2), "c": jnp.ones(2)}
    before = dict(tree)
    there_and_back(on_tree({"h": divide(2)}), tree)
    assert tree["h"] is before["h"] and set(tree) == set(before)


def test_a_lifted_codec_runs_under_jit_and_is_known_by_its_spec():
    codec = on_tree({"h": divide(2)})
    tree = {"h": jnp.ones(2), "ids": jnp.arange(2)}
    message = jax.jit(lambda t: codec.encode(t, codec.init(t), Context())[0])(tree)
    spec = message_spec(codec, spec_of(tree))
    assert spec == spec_of(message)
    same(jax.jit(lambda m: codec.decode(m, {"h": ()})[0])(message), tree)
