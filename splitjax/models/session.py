"""A session: what stages remember of the tokens that they have read."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from splitjax.core.keys import fold
from splitjax.core.stage import Stage, join, output_spec, ties
from splitjax.core.tree import Tree


def session(stages: Sequence[Stage], params: Tree, state: Tree, spec: Tree) -> Tree:
    """State of a session that begins: what each stage's `start` makes, else its own.

    Hand it to `apply` in the place of the state; what comes back remembers the tokens
    read. The pieces of a cut model each begin one over their own stages.

    Args:
      stages: a model, or one party's part of it.
      params: by stage name.
      state: by stage name, as training left it.
      spec: shapes and dtypes of the input with room for all tokens of the session: its
        T is how many are kept.

    Returns:
      State by stage name.

    Example:
      >>> from splitjax.models.decoder import decoder
      >>> from splitjax.models.decoder_config import DecoderConfig
      >>> config = DecoderConfig("gpt2", 9, 4, 2, 2, 1, 8, 16)
      >>> spec = {"ids": jax.ShapeDtypeStruct((1, 6), jnp.int32),
      ...     "mask": jax.ShapeDtypeStruct((1, 6), jnp.bool_)}
      >>> model = join(decoder(config))
      >>> params, state = model.init(jax.random.key(0), spec)
      >>> made = session(model.stages, params, state, spec)
      >>> made["layer_0/attention"]["cache"]["key"].shape
      (1, 6, 2, 2)
    """
    out = {}
    for stage in join(stages).stages:
        own, kept = params[stage.name], state[stage.name]
        out[stage.name] = stage.start(own, spec) if stage.start else kept
        spec = output_spec(stage, own, kept, spec, **ties(stage, params))
    return out


def generate(
    stages: Sequence[Stage],
    params: Tree,
    state: Tree,
    ids: np.ndarray,
    *,
    tokens: int,
    mask: np.ndarray | None = None,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Continues texts, one token at a time, each read once.

    Args:
      stages: of a decoder whose output is logits (B, T, V).
      params: by stage name.
      state: by stage name.
      ids: (B, T) int, the texts so far; shorter ones padded on the left.
      tokens: how many to add, at least 1.
      mask: (B, T) bool, which ids are tokens; all by default.
      temperature: 0: the likeliest token; else drawn from softmax(logits / it).
      key: what the draws are folded from.

    Returns:
      (B, tokens) int32.

    Raises:
      ValueError: for no tokens, a text whose last id is padding, or draws without key.

    Example:
      >>> generate.__name__
      'generate'
    """
    mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask, bool)
    if tokens < 1:
        raise ValueError(f"tokens={tokens}: it must be 1 or more")
    if not mask[:, -1].all():
        raise ValueError("a text ends in padding: pad shorter texts on the left")
    if temperature and key is None:
        raise ValueError(f"temperature {temperature} draws tokens: give a key")
    rows, length = ids.shape
    spec = {
        "ids": jax.ShapeDtypeStruct((rows, length + tokens), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows, length + tokens), jnp.bool_),
    }
    # A step uses up what it is given, and what `session` handed on is the caller's.
    memory = jax.tree.map(jnp.copy, session(stages, params, state, spec))
    x = {"ids": jnp.asarray(ids, jnp.int32), "mask": jnp.asarray(mask)}
    out = []
    for number in range(tokens):
        draw = fold(key, number) if temperature else None
        new, memory = _step(
            params, memory, x, draw, stages=tuple(stages), temperature=temperature
        )
        out.append(np.asarray(new, np.int32))
        x = {"ids": jnp.asarray(out[-1])[:, None], "mask": jnp.ones((rows, 1), bool)}
    return np.stack(out, 1)


# Only one copy of the memory is held.
@functools.partial(
    jax.jit, static_argnames=("stages", "temperature"), donate_argnames="memory"
)
def _step(params, memory, x, key, *, stages, temperature):
    logits, memory, _ = join(stages).apply(params, memory, x, key=None, train=False)
    last = logits[:, -1]
    if temperature:
        return jax.random.categorical(key, last / temperature), memory
    return last.argmax(-1), memory
