"""A trace of some steps, for TensorBoard's profiler or Perfetto."""

import pathlib

import jax


class Trace:
    """Traces a number of steps with `jax.profiler`, from the second one on.

    The first step of a process compiles, and would hide the others. As a context it
    also ends a trace that the run did not live to see the end of.

    Args:
      folder: where the trace goes.
      steps: how many; 0 for none at all.

    Example:
      >>> with Trace(pathlib.Path("unused"), 0) as trace:
      ...     trace.step()
    """

    def __init__(self, folder: pathlib.Path, steps: int):
        self.folder, self.steps = folder, steps
        self._seen, self._running = 0, False

    def __enter__(self) -> "Trace":
        """Starts nothing yet."""
        return self

    def __exit__(self, *error) -> None:
        """Stops a trace that is running."""
        self._stop()

    def step(self) -> None:
        """Tells that a step begins."""
        if self.steps and self._seen == 1:
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        if self._seen == self.steps + 1:
            self._stop()
        self._seen += 1

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
        self._running = False
