"""A stage that trains as it is evaluated."""

from splitjax.core.stage import Stage, with_apply


def still(stage: Stage) -> Stage:
    """A stage as in evaluation: no dropout, no statistics of a batch; it learns still.

    Before a codec that remembers examples: else each visit brings noise that is new,
    and what is remembered never settles.

    Example:
      >>> noisy = Stage("noisy", init=lambda key, spec: ({}, {}),
      ...     apply=lambda p, s, x, *, key, train: (x + train, s, {}))
      >>> still(noisy).apply({}, {}, 3.0, key=None, train=True)[0]
      3.0
    """

    def apply(params, state, x, *, key, train, **kwargs):
        del key, train
        return stage.apply(params, state, x, key=None, train=False, **kwargs)

    return with_apply(stage, apply)
