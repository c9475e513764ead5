"""Teaches a model with a narrow cut to compute what the whole one computes."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from splitjax.core.codec import Link, chain
from splitjax.core.cut import cut
from splitjax.core.split import Split
from splitjax.core.stage import Stage, join
from splitjax.core.tree import Tree


def hidden_error(y: Tree, target: Tree) -> tuple[jax.Array, dict]:
    """The error of hidden states: of tokens, and of the means over texts.

    Each is a sum of squares, as a share of that of the target. The means are what most
    heads read; their error is small beside that of the tokens, and would be drowned.

    Args:
      y: {"h": (B, T, D)} of the student.
      target: {"h": (B, T, D), "mask": (B, T)} of the teacher.

    Example:
      >>> target = {"h": jnp.ones((1, 2, 3)), "mask": jnp.array([[True, False]])}
      >>> float(hidden_error({"h": jnp.zeros((1, 2, 3))}, target)[0])
      2.0
    """
    real = target["mask"][..., None].astype(jnp.float32)
    t = target["h"].astype(jnp.float32) * real
    wrong = y["h"].astype(jnp.float32) * real - t
    count = jnp.maximum(real.sum(1), 1)

    def share(a, b):
        return jnp.square(a).sum() / jnp.square(b).sum()

    tokens, means = share(wrong, t), share(wrong.sum(1) / count, t.sum(1) / count)
    return tokens + means, {"tokens": tokens, "means": means}


def distill(
    teacher: Sequence[Stage],
    student: Sequence[Stage],
    params: Tree,
    state: Tree,
    *,
    link: Link,
    batches: Iterable[Tree],
    steps: int,
    learning_rate: float,
) -> tuple[Tree, list[float]]:
    """Trains the stages from the cut on, until their output is the teacher's.

    The stages before the first one in which the two differ are shared and stay as they
    are; the student's next stage is the edge's part of the cut, and the message passes
    the link's forward codec, so that what follows learns to read what really arrives.

    Args:
      teacher: stages whose last output is {"h", "mask"}.
      student: the same ones, but where the cut is.
      params: of both, by stage name.
      state: likewise.
      link: of the cut.
      batches: inputs of the model, at least `steps` of them.
      steps: optimizer steps (Adam; the rate rises, then falls along a cosine).
      learning_rate: the peak.

    Returns:
      The new parameters of the student's stages from the cut on, and the losses.

    Raises:
      ValueError: when the two do not differ.

    Reference:
      Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, 2015, arXiv
      1503.02531; Romero et al., FitNets, 2015, arXiv 1412.6550 (hidden states).
    Differs:
      The student is the teacher itself but for the cut; of the hidden states only the
      last ones are compared, and their means over texts.
    """
    pairs = zip(teacher, student, strict=False)
    count = next((i for i, (t, s) in enumerate(pairs) if t.name != s.name), None)
    if count is None:
        raise ValueError("teacher and student have the same stages: nothing to learn")
    front, rear = join(teacher[:count]), join(teacher[count:])
    made = cut(student[count:], after=student[count].name)
    split = Split(made, (Link(link.forward, chain()),), hidden_error)

    def of(stages, tree):
        return {stage.name: tree[stage.name] for stage in stages}

    def apply(part, whole, x):
        own = (of(part.stages, tree) for tree in whole)
        return part.apply(*own, x, key=None, train=False)[0]

    warm = max(1, min(50, steps // 10))
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm, steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    trained = made.partition(of(student[count:], params))
    fixed = made.partition(of(student[count:], state))
    # Arguments, since each program would keep its own copy of a constant.
    whole = tuple(of(teacher, tree) for tree in (params, state))

    @jax.jit
    def step(trained, opt, links, whole, x, number):
        entered = apply(front, whole, x)
        target = apply(rear, whole, entered)
        (loss, extra), grads = split.value_and_grad(
            trained, fixed, links, entered, target, key=None, train=False, tick=number
        )
        with jax.numpy_dtype_promotion("standard"):  # for Optax, as in algorithms.split
            updates, opt = tx.update(grads, opt, trained)
        return optax.apply_updates(trained, updates), opt, extra["links"], loss

    opt, links, losses = tx.init(trained), None, []
    bar = tqdm(total=steps, desc="distill", disable=None, leave=False)
    for number, x in zip(range(steps), batches, strict=False):
        if links is None:
            links = split.init_links(
                trained, fixed, jax.eval_shape(lambda x: apply(front, whole, x), x)
            )
        trained, opt, links, loss = step(trained, opt, links, whole, x, number)
        losses.append(loss)
        bar.update()
        if number % 50 == 0:
            bar.set_postfix(error=f"{float(loss):.4f}")
    bar.close()
    return made.merge(trained), [float(loss) for loss in losses]
