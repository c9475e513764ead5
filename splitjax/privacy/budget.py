"""The privacy budget of a link: what its codec's noise promises about one example."""

import dataclasses
import itertools
import math

import jax

from splitjax.core.codec import Codec, message_spec
from splitjax.core.mechanism import Mechanism
from splitjax.core.message import is_sized
from splitjax.core.tree import Tree, is_float
from splitjax.privacy.accountant import Spent, epsilon_basic, epsilon_renyi

# Noises that were added one after the other to all floats: the strongest one counts.
Noise = tuple[Spent, ...]

# Why there is no promise.
OPEN = "other floats cross without noise"
MIXED = "what is sent of an example depends on its whole batch"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one example has spent over a link.

    Attributes:
      epsilon_basic: by basic composition; None where there is no promise.
      epsilon_renyi: by Renyi differential privacy, likewise.
      delta: of both.
      releases: values or rows of the example that were sent with noise.
      noise: kinds and levels, as text.
      broken_by: why there is no promise: other floats cross without noise, or the
        noise comes after a codec that mixes the whole batch (`sign(center=True)`), so
        that an example moves what is sent of the others. "" where there is one.
    """

    epsilon_basic: float | None
    epsilon_renyi: float | None
    delta: float
    releases: int
    noise: str
    broken_by: str = ""

    def __str__(self):
        if self.epsilon_basic is None or self.epsilon_renyi is None:
            return f"{self.noise}, but {self.broken_by}: no promise"
        return (
            f"epsilon {self.epsilon_basic:.4g} (basic), {self.epsilon_renyi:.4g} "
            f"(Renyi), delta {self.delta:g}: {self.releases} x {self.noise}"
        )


def budget(
    codec: Codec, spec: Tree, *, examples: int, messages: int, delta: float = 1e-5
) -> Budget | None:
    """What an example has spent after some messages through a codec.

    Each value (or row) that carries noise is one release, and all of them compose.
    Neighboring inputs differ in one example, in all of its values. Integers (lengths,
    masks, labels) cross without noise and are not part of the promise; nor is what the
    noise's key tells someone who has it.

    Args:
      codec: of the link.
      spec: of its input: examples along the leading axis.
      examples: how many there are in the input.
      messages: how often an example is sent.
      delta: see `epsilon_renyi`.

    Returns:
      None for a codec without noise.

    Raises:
      ValueError: for no examples, a negative count of messages, or a bad delta.

    Example:
      >>> import jax.numpy as jnp
      >>> noisy = Codec(lambda s: (), lambda x, s, c: (x, s), lambda m, s: (m, s),
      ...     mechanism=Mechanism("randomized_response", 1.0, "value"))
      >>> spec = jax.ShapeDtypeStruct((32, 100), jnp.float32)
      >>> print(budget(noisy, spec, examples=32, messages=3))
      epsilon 300 (basic), 206 (Renyi), delta 1e-05: 300 x randomized_response(1)
    """
    if examples < 1 or messages < 0:
        raise ValueError(f"examples={examples}, messages={messages}: 1 and 0 or more")
    choices, broken_by = _noises(codec, spec, examples, 1)
    if not choices:
        return None
    spent = [
        tuple(Spent(one.mechanism, one.count * messages) for one in noise)
        for noise in choices
    ]
    if broken_by:
        one = spent[0]
        return Budget(None, None, delta, _count(one), _names(one), broken_by)
    best = min(spent, key=lambda noise: epsilon_renyi(noise, delta))
    basic = min(epsilon_basic(noise, delta) for noise in spent)
    found = basic, epsilon_renyi(best, delta)
    return Budget(*found, delta, _count(best), _names(best))


def _noises(
    codec: Codec, spec: Tree, examples: int, rows: int, mixed: bool = False
) -> tuple[list[Noise], str]:
    """The noises of a codec for one message, and why they promise nothing, if so.

    Args:
      codec: the codec.
      spec: of its input.
      examples: along the leading axis.
      rows: of a `Sized` leaf that one example has at most.
      mixed: whether a row of the input depends on all examples already.
    """
    whole: list[Noise] = []
    late: list[Noise] = []  # after a mix of the whole batch
    entries: dict[str, list[Noise]] = {}
    open_floats = False
    for part in codec.parts or (codec,):
        if part.mechanism is not None:
            count = _releases(part.mechanism, spec, examples, rows)
            (late if mixed else whole).append((Spent(part.mechanism, count),))
        for key, inner in part.entries.items():
            found, broken_by = _noises(inner, spec[key], examples, rows, mixed)
            entries.setdefault(key, []).extend([] if broken_by else found)
            late += found if broken_by == MIXED else []
        if part.entries:
            open_floats = any(
                not entries.get(key) for key in spec if _floats(spec[key])
            )
        after = message_spec(part, spec)
        mixed = mixed or _mixes_all(part)
        if (
            part.mixes and part.mixes > 1
        ):  # so many groups can `rows` neighbors fall into
            rows = (rows + part.mixes - 2) // part.mixes + 1
        elif not _sized(spec) and (sized := _sized(after)):
            rows = max(-(-node.buffer.shape[0] // examples) for node in sized)
        spec = after
    if whole:
        return whole, ""
    noisy = [choices for choices in entries.values() if choices]
    joined = [tuple(itertools.chain(*pick)) for pick in itertools.product(*noisy)]
    if noisy and not open_floats:
        return joined, ""
    return (late, MIXED) if late else (joined if noisy else [], OPEN if noisy else "")


def _mixes_all(codec: Codec) -> bool:
    """Whether some part of a codec lets each row depend on all."""
    inside = (*codec.parts, *codec.entries.values())
    return codec.mixes is None or any(map(_mixes_all, inside))


def _releases(mechanism: Mechanism, spec: Tree, examples: int, rows: int) -> int:
    """Values or rows of one example in a message."""
    total = 0
    for node in jax.tree.leaves(spec, is_leaf=is_sized):
        shape = node.buffer.shape if is_sized(node) else node.shape
        if not _floats(node):
            continue
        mine = rows
        if not is_sized(node):
            mine = -(-shape[0] // examples) if shape else 1
        total += mine * (math.prod(shape[1:]) if mechanism.per == "value" else 1)
    return total


def _sized(spec: Tree) -> list:
    return [node for node in jax.tree.leaves(spec, is_leaf=is_sized) if is_sized(node)]


def _floats(spec: Tree) -> bool:
    nodes = jax.tree.leaves(spec, is_leaf=is_sized)
    arrays = [node.buffer if is_sized(node) else node for node in nodes]
    return any(is_float(a) for a in arrays)


def _count(noise: Noise) -> int:
    return sum(one.count for one in noise)


def _names(noise: Noise) -> str:
    named = [f"{one.mechanism.kind}({one.mechanism.level:g})" for one in noise]
    return " and ".join(dict.fromkeys(named))
