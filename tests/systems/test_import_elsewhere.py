"""Pieces of ours in scripts that know nothing of us, at three changed lines each.

The scripts of `elsewhere/` are written as the documentation of Linen, NNX and optax
writes them. A row of EDITS is all that a user changes: an import counts as a line.
"""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splitjax.core.factor import is_factor, materialize
from splitjax.core.tree import path_name

SCRIPTS = pathlib.Path(__file__).parent / "elsewhere"
HIDDEN = {"linen": "Dense_0", "nnx": "hidden", "nnx_optimizer": "hidden"}
HIDDEN["optax"] = "hidden"

TX = "tx = optax.adam(1e-2)\n"
LOW = 'lrpet(at_rank("{}/kernel", 2), every=5)'
LRPET = [
    ("import optax\n", "import optax\nfrom splitjax.optim import at_rank, lrpet\n"),
    (TX, f"tx = optax.chain(optax.adam(1e-2), {LOW})\n"),
]
MASK = [
    ("import optax\n", "import optax\nfrom splitjax.optim import mask_updates\n"),
    (TX, 'tx = mask_updates(optax.adam(1e-2), "{}/.*", 1.0, key=jax.random.key(3))\n'),
]
FACTOR = [
    (
        "import optax\n",
        "import optax\n"
        "from splitjax.factors import factorize, low_rank, materialize, where\n",
    ),
    (TX, 'params = factorize(low_rank(2), params, where("{}/kernel"))\n' + TX),
]
READ = {  # where each script reads its parameters
    "linen": ('{"params": params}', '{"params": materialize(params)}'),
    "nnx": ("merge(graphdef, params)", "merge(graphdef, materialize(params))"),
    "optax": ("(predict(params, x)", "(predict(materialize(params), x)"),
}
EDITS = {(script, "lrpet"): LRPET for script in HIDDEN}
EDITS |= {(script, "mask"): MASK for script in HIDDEN}
# `nnx.Optimizer` opens what an `nnx.Param` holds, a factor too: split and merge.
EDITS |= {(script, "factor"): [*FACTOR, edit] for script, edit in READ.items()}


def edited(script: str, addition: str) -> tuple[str, str]:
    """A script as it is and as a user changes it."""
    old = new = (SCRIPTS / f"{script}_script.py").read_text()
    for before, after in EDITS.get((script, addition), []):
        assert new.count(before) == 1, before
        new = new.replace(before, after.replace("{}", HIDDEN[script]))
    return old, new


def changed(old: str, new: str) -> int:
    """How many lines of the new text are not lines of the old one."""
    return len(set(new.splitlines()) - set(old.splitlines()))


def ran(text: str, folder: pathlib.Path) -> dict:
    """What a script leaves behind, under JAX's own defaults."""
    path = folder / "script.py"
    path.write_text(text)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return runpy.run_path(str(path))


def kernel_of(tree, script):
    rows = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_factor)
    named = {path_name(path): leaf for path, leaf in rows}
    return named[f"{HIDDEN[script]}/kernel"]


@pytest.mark.parametrize(("script", "addition"), EDITS)
def test_a_piece_of_ours_takes_three_lines(script, addition, tmp_path):
    old, new = edited(script, addition)
    assert 1 <= changed(old, new) <= 3
    found = ran(new, tmp_path)
    losses, kernel = found["losses"], kernel_of(found["trained"], script)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    if addition == "factor":
        assert kernel.v.shape == (8, 2) and kernel.spec.shape == (8, 16)
        start = kernel_of(found["params"], script)
        assert is_factor(start) and is_factor(kernel)
        kernel = kernel.materialize()
    if addition in ("lrpet", "factor"):
        values = np.linalg.svd(np.float64(kernel), compute_uv=False)
        assert values[2] < 1e-5 * values[0] < values[1]
    if addition == "mask":
        plain = ran(old.replace("range(20)", "range(0)"), tmp_path)
        np.testing.assert_array_equal(kernel, kernel_of(plain["trained"], script))
        others = [
            np.asarray(a != b).any()
            for a, b in zip(
                jax.tree.leaves(found["trained"]),
                jax.tree.leaves(plain["trained"]),
                strict=True,
            )
        ]
        assert any(others)


def test_the_scripts_know_nothing_of_us():
    for path in SCRIPTS.glob("*.py"):
        assert "splitjax" not in path.read_text()
    assert materialize({"a": jnp.ones(1)})["a"].shape == (1,)


def test_the_three_kinds_get_all_three_pieces():
    for script in ("linen", "nnx", "optax"):
        for addition in ("lrpet", "factor", "mask"):
            assert (script, addition) in EDITS
