"""How two records of a run differ, by the names of what does."""

from typing import Any

from splitjax.core.tree import Tree, flat


def unlike(one: dict[str, Any], other: dict[str, Any], here: str, there: str) -> list:
    """The names whose values differ, with the values; a default may be left out.

    Args:
      one: what has the name `here` in the words.
      other: what has the name `there`.
      here: such as "there".
      there: such as "now".

    Example:
      >>> unlike({"rank": 8}, {"rank": 4, "new": 1}, "there", "now")
      ['new: nothing there, 1 now', 'rank: 8 there, 4 now']
    """

    def shown(tree: dict, name: str) -> str:
        return repr(tree[name]) if name in tree else "nothing"

    return [
        f"{name}: {shown(one, name)} {here}, {shown(other, name)} {there}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def kinds(tree: Tree) -> dict[str, str]:
    """Dtype and shape of the arrays of a tree, by their paths.

    Example:
      >>> import numpy as np
      >>> kinds({"ffn": {"kernel": np.zeros((2, 3), np.float32)}})
      {'ffn/kernel': 'float32[2, 3]'}
    """
    return {name: kind_of(leaf) for name, leaf in flat(tree).items()}


def kind_of(array: Any) -> str:
    """Dtype and shape of an array.

    Example:
      >>> import numpy as np
      >>> kind_of(np.zeros(3, bool))
      'bool[3]'
    """
    return f"{array.dtype}{list(array.shape)}"
