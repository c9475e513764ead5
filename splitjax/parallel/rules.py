"""Where each leaf of a tree lies on a mesh: ordered patterns of paths, and a report."""

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from splitjax.core.tree import Tree, path_name

Axes = tuple[str | None, ...]


class Rule(NamedTuple):
    """Where the leaves of a pattern lie.

    Attributes:
      pattern: a regular expression that a path, or the end of one after a "/", matches
        in full.
      axes: for each axis of the leaf the mesh's axis that divides it, or None. The rule
        is for leaves of so many axes; None: for all, which are everywhere.
    """

    pattern: str
    axes: Axes | None


class Placed(NamedTuple):
    """A line of the report.

    Attributes:
      path: of the leaf.
      shape: of the leaf.
      spec: where it lies.
      rule: the pattern that said so; "" for none.
      problem: why it is everywhere, or whole along an axis, against what was meant; ""
        where nothing is wrong.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    rule: str
    problem: str


# What widens is cut by its outputs (column), what narrows again by its inputs (row):
# one all-reduce for each pair, after the second.
COLUMN = "query|key|value|wi|gate|expand/u|conv_1|block[0-9]+/0/conv|hidden_0"
ROW = "attention/out|cross/out|wo|conv_2|block[0-9]+/1/conv|hidden_1"
# The stages of `models.mlp` take turns.
EVEN, ODD = r"dense_[0-9]*[02468]/dense", r"dense_[0-9]*[13579]/dense"
QUANTIZED = "(base/)?(codes|scale)"
RULES = (
    # Experts: their own leaves over "expert", each of them over "tensor" as a block is.
    Rule("(wi|gate)/kernel(/base)?", ("expert", None, "tensor")),
    Rule("wo/kernel(/base)?", ("expert", "tensor", None)),
    Rule(f"(wi|gate)/kernel/{QUANTIZED}", ("expert", None, "tensor")),
    Rule("wo/kernel/(base/)?codes", ("expert", "tensor", None)),
    Rule("wo/kernel/(base/)?scale", ("expert", None, None)),
    Rule("(wi|gate)/kernel/[bu]", ("expert", None, "tensor")),
    Rule("wo/kernel/[av]", ("expert", "tensor", None)),
    Rule("(wi|gate|wo)/kernel/[avsbu]", ("expert", None, None)),
    Rule("(wi|gate|wo)/kernel/(left|right)/[0-9]+", ("expert", None, None, None, None)),
    Rule("(wi|gate)/bias", ("expert", "tensor")),
    Rule("wo/bias", ("expert", None)),
    # The untied head of a decoder: its logits lie apart, as a table's rows do.
    Rule("head/out/kernel(/base)?", (None, "tensor")),
    Rule("head/out/kernel/[bu]", (None, "tensor")),
    Rule("word/embedding(/base)?", ("tensor", None)),
    Rule("word/embedding/[av]", ("tensor", None)),
    # Matrices, dense or factors: `base` of a Lora, `a b` of a Product, `v s u`.
    Rule(f"({COLUMN}|{EVEN})/kernel(/base)?", (None, "tensor")),
    Rule(f"({COLUMN}|{EVEN})/kernel/[bu]", (None, "tensor")),
    # A quantized one. Where rows are cut its scales are whole: they may be few.
    Rule(f"({COLUMN}|{EVEN}|head/out)/kernel/{QUANTIZED}", (None, "tensor")),
    Rule(f"({ROW}|{ODD})/kernel/(base/)?codes", ("tensor", None)),
    Rule(f"({COLUMN}|{EVEN})/bias", ("tensor",)),
    Rule(f"({ROW}|{ODD})/kernel(/base)?", ("tensor", None)),
    Rule(f"({ROW}|{ODD})/kernel/[av]", ("tensor", None)),
    # Codes and bases of a SmartDeal, by their outputs.
    Rule(f"({COLUMN})/kernel/codes", ("tensor", None, None, None)),
    Rule(f"({COLUMN})/kernel/basis", ("tensor", None, None, None)),
    # Convolutions (height, width, inputs, outputs), and the norm between two of them.
    Rule(f"({COLUMN})/kernel", (None, None, None, "tensor")),
    Rule("(norm_1|block[0-9]+/0/norm)/(scale|bias|mean|var)", ("tensor",)),
    Rule(f"({ROW})/kernel", (None, None, "tensor", None)),
    # Everywhere: what is small, and what no pair was found for.
    Rule("[^/]*norm[^/]*/(scale|bias|mean|var)", None),
    Rule("bias|cls|position", None),
    Rule("(position|type|relative_bias|word)/embedding(/.*)?", None),
    Rule("(router|pooler|classifier|head/dense|patch|squeeze/[sv])/kernel(/.*)?", None),
    Rule("(conv|conv_[0-9]+|skip_conv)/kernel(/.*)?", None),
    Rule("kernel/.*", None),  # the other arrays of a factor
)


def place(
    tree: Tree, mesh: Mesh, *, rules: Sequence[Rule] = RULES, stacked: str = ""
) -> tuple[Tree, tuple[Placed, ...]]:
    """Shardings for a tree of parameters, and a report of what was decided.

    The first rule whose pattern matches and that is for as many axes decides. An axis
    that the mesh does not have divides nothing: one list of rules serves every mesh.
    Global shapes stay: nothing else of a model is rewritten, and heads that `tensor`
    does not divide cost more collectives, not another result.

    Args:
      tree: arrays or specs; parameters, or an optimizer's state of the same paths.
      mesh: see `make_cloud_mesh`.
      rules: in order; put yours before `RULES`, which know the models of this package,
        dense and as factors.
      stacked: a pattern, as a rule's, of leaves whose first axis is the number of the
        block (`core.stage.repeat`): it lies over "pipe", and rules see the others.

    Returns:
      A tree of `NamedSharding`, and a line for each leaf.

    Warns:
      UserWarning: once, naming the leaves that no rule is for, or that an axis of the
        mesh does not divide; they are whole there, which is right but saves nothing.

    Example:
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> mesh = make_cloud_mesh("tensor=1", devices=jax.devices()[:1])
      >>> ffn = {"wi": {"kernel": jax.numpy.ones((4, 8))}}
      >>> shardings, [line] = place(ffn, mesh)
      >>> shardings["wi"]["kernel"].spec == PartitionSpec(None, "tensor")
      True
      >>> line.path, line.problem
      ('wi/kernel', '')

    Reference:
      Shoeybi et al., Megatron-LM: Training multi-billion parameter language models
      using model parallelism, 2019 (arXiv:1909.08053), section 3: columns, then rows.
    Differs:
      the paper writes its all-reduces into the model; here the compiler finds them. A
      vocabulary that is not divided stays whole, where the paper pads it.
    """
    shardings, lines = layout(tree, mesh, rules=rules, stacked=stacked)
    if wrong := [line for line in lines if line.problem]:
        warnings.warn(f"not divided as meant:\n{table(wrong)}", stacklevel=2)
    return shardings, lines


def layout(
    tree: Tree, mesh: Mesh, *, rules: Sequence[Rule] = RULES, stacked: str = ""
) -> tuple[Tree, tuple[Placed, ...]]:
    """As `place`, which warns: this is for those who ask once more.

    Example:
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> mesh = make_cloud_mesh("data=1", devices=jax.devices()[:1])
      >>> layout({"w": jax.numpy.ones(2)}, mesh)[1][0].problem
      'no rule is for it'
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    lines = tuple(
        _decide(path_name(path), tuple(leaf.shape), mesh, rules, stacked)
        for path, leaf in leaves
    )
    return treedef.unflatten([NamedSharding(mesh, line.spec) for line in lines]), lines


def place_like(state: Tree, params: Tree, shardings: Tree, mesh: Mesh) -> Tree:
    """Shardings for an optimizer's state: a leaf made like a parameter lies as it does.

    Such a leaf has the parameter's shape, and a path that ends in the parameter's
    (`mu/layer_0/ffn/wi/kernel`); everything else, as a count of steps, is everywhere.

    Args:
      state: arrays or specs.
      params: the parameters, or their specs.
      shardings: of the parameters; see `place`.
      mesh: theirs.

    Example:
      >>> import optax
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> mesh = make_cloud_mesh("data=1", devices=jax.devices()[:1])
      >>> w = {"w": jax.numpy.ones(2)}
      >>> over = {"w": NamedSharding(mesh, PartitionSpec("data"))}
      >>> made = place_like(optax.adam(0.1).init(w), w, over, mesh)
      >>> made[0].mu["w"].spec, made[0].count.spec
      (P('data',), P())
    """
    found = jax.tree_util.tree_leaves_with_path(params)
    placed = zip(found, jax.tree.leaves(shardings), strict=True)
    known = {
        (path_name(path), tuple(leaf.shape)): sharding
        for (path, leaf), sharding in placed
    }
    everywhere = NamedSharding(mesh, PartitionSpec())

    def one(path: tuple, leaf: Any) -> NamedSharding:
        parts = path_name(path).split("/")
        for start in range(len(parts)):  # the longest path first
            name = "/".join(parts[start:])
            if (name, tuple(leaf.shape)) in known:
                return known[name, tuple(leaf.shape)]
        return everywhere

    return jax.tree_util.tree_map_with_path(one, state)


def place_rows(leaf: Any, mesh: Mesh) -> NamedSharding | None:
    """Where an array lies that has a row for each example: by rows over "data".

    Args:
      leaf: an array or its spec.
      mesh: see `make_cloud_mesh`; without "data" each device has all rows.

    Returns:
      The place; None where there are no rows, or "data" does not divide them.

    Example:
      >>> from splitjax.parallel.mesh import make_cloud_mesh
      >>> mesh = make_cloud_mesh("data=1", devices=jax.devices()[:1])
      >>> rows = jax.numpy.ones((4, 3))
      >>> place_rows(rows, mesh).spec, place_rows(rows[0, 0], mesh)
      (P(), None)
    """
    width = mesh.shape.get("data", 1)
    if not leaf.ndim or not leaf.shape[0] or leaf.shape[0] % width:
        return None
    return NamedSharding(mesh, PartitionSpec(*["data"] * (width > 1)))


def table(lines: Sequence[Placed]) -> str:
    """A report as text, a line for each leaf.

    Example:
      >>> print(table([Placed("w", (3, 2), PartitionSpec(), "", "no rule")]))
      w (3, 2) everywhere: no rule
    """

    def where(spec: PartitionSpec) -> str:
        return f"by {tuple(spec)}" if any(spec) else "everywhere"

    return "\n".join(
        f"{line.path} {line.shape} {where(line.spec)}"
        + (f": {line.problem}" if line.problem else "")
        for line in lines
    )


def _decide(
    path: str, shape: tuple, mesh: Mesh, rules: Sequence[Rule], stacked: str
) -> Placed:
    first: Axes = ("pipe",) if stacked and _matches(stacked, path) else ()
    if not shape:
        return Placed(path, shape, PartitionSpec(), "", "")
    rank = len(shape) - len(first)
    for rule in rules:
        if _matches(rule.pattern, path):
            axes = (None,) * rank if rule.axes is None else rule.axes
            if len(axes) == rank:
                spec, problem = _fit((*first, *axes), shape, mesh)
                return Placed(path, shape, spec, rule.pattern, problem)
    spec, problem = _fit((*first, *(None,) * rank), shape, mesh)
    return Placed(path, shape, spec, "", problem or "no rule is for it")


def _matches(pattern: str, path: str) -> bool:
    return re.fullmatch(f"(?:.*/)?(?:{pattern})", path) is not None


def _fit(axes: Axes, shape: tuple, mesh: Mesh) -> tuple[PartitionSpec, str]:
    """The axes that the mesh has and that divide the shape, and what is wrong."""
    kept: list[str | None] = []
    wrong = []
    for name, size in zip(axes, shape, strict=True):
        parts = mesh.shape.get(name, 1) if name else 1
        if size % parts:
            wrong.append(f"{name}={parts} does not divide {size}")
        kept.append(name if name in mesh.shape and not size % parts else None)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept), "; ".join(wrong)
