"""What a mesh with an axis "pipe" allows of an experiment's options."""

from splitjax.parallel.mesh import parse


def check_pipe(mesh: str, micro: int, *, optimizer: str, debug: bool) -> None:
    """Raises a ValueError for options that do not go with a pipeline.

    Args:
      mesh: of the cloud, as text.
      micro: the option `pipe_micro`.
      optimizer: the option.
      debug: the option.

    Example:
      >>> check_pipe("data=2,pipe=2", 4, optimizer="adamw", debug=False)
    """
    if micro < 0:
        raise ValueError(f"pipe_micro={micro}: 1 or more, or 0 to have it chosen")
    if not mesh or parse(mesh).get("pipe", 1) == 1:
        if micro:
            raise ValueError(
                f"pipe_micro={micro} with mesh={mesh!r}: it is of a pipeline; name an "
                "axis, as mesh='data=2,pipe=4', or leave it away"
            )
        return
    if optimizer == "kfac":
        raise ValueError(
            f"optimizer='kfac' with mesh={mesh!r}: its statistics are of a whole batch,"
            " and a pipeline computes by micro-batches; take another optimizer, or a "
            "mesh without 'pipe'"
        )
    if debug:
        raise ValueError(
            f"debug=True with mesh={mesh!r}: a pipeline is one compiled program; take "
            "a mesh without 'pipe'"
        )
