"""A kernel: one function of tiles, run by XLA or as a Pallas program."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from splitjax.core.tree import nearest
from splitjax.kernels.launch import block, launch
from splitjax.kernels.tile import Tile

IMPLS = ("auto", "xla", "pallas")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A function of the rows of an array (..., W), with two ways to run it.

    It is written once, for a `Tile`. As "xla" the tile is the whole array, with its
    axes as they are, so that XLA fuses it with what stands around and GSPMD sees its
    shardings. As "pallas" it is one program for each tile: Triton on a GPU, Mosaic on a
    TPU, interpreted on a CPU.

    `impl="auto"` is "xla" where JAX's default backend is a CPU while the program is
    traced, whatever it is lowered for. Elsewhere the program has both, and the
    platform that it is lowered for decides: "pallas", or on a CPU "xla". A row that no
    tile holds, or an empty array, is left to XLA. To GSPMD a Pallas program is opaque:
    on a mesh take "xla". No Pallas program here has run on a GPU or a TPU yet: they are
    lowered for both in tests, and interpreted.

    Attributes:
      name: of the program.
      function: `(tile, *blocks, **static) -> blocks`, on blocks of one rank.
      reads: the kind of each array: "each" (..., W), "row" (..., 1), "column" (W,), or
        "one" ().
      makes: the kind of each result: "each", "row" (..., K), from K tiles of a row (1
        as "xla"), or "column", summed over rows.
      parted: whether a row may be parted among tiles.

    Raises:
      ValueError: on a call, for another `impl`.

    Example:
      >>> double = Kernel("double", lambda tile, x: (2 * x,), ("each",), ("each",))
      >>> x = jnp.ones((2, 3))
      >>> [double(x, dtypes=[x.dtype], impl=i)[0].sum().item() for i in IMPLS]
      [12.0, 12.0, 12.0]
    """

    name: str
    function: Callable[..., tuple]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    parted: bool = False

    def __call__(
        self,
        *arrays: jax.Array,
        dtypes: Sequence[Any],
        impl: str = "auto",
        **static: Any,
    ) -> tuple[jax.Array, ...]:
        """Results of these dtypes; the first array is of the kind "each"."""
        check(impl)
        on = functools.partial(self.program, arrays=arrays, dtypes=dtypes, **static)
        return by_platform(
            impl,
            arrays,
            twin=on("xla"),
            gpu=on("triton"),
            tpu=on("mosaic"),
            interpreted=on("mosaic", interpret=True),
        )

    def program(
        self,
        target: str,
        arrays: Sequence[jax.Array],
        dtypes: Sequence[Any],
        *,
        interpret: bool = False,
        **static: Any,
    ) -> Callable[..., tuple[jax.Array, ...]]:
        """What runs on one target, for arrays like these.

        Args:
          target: "xla", or one of `launch.TARGETS`; where it has no tile for these
            arrays it is the program of "xla".
          arrays: as the call has them; only their shapes are read.
          dtypes: of the results.
          interpret: whether a Pallas program is run by XLA operations, on any device.
          **static: more arguments of the function.
        """
        shape = arrays[0].shape
        function = functools.partial(self.function, **static)
        twin = functools.partial(self._whole, function, dtypes, shape)
        if target == "xla" or not math.prod(shape):
            return twin
        rows = math.prod(shape[:-1])
        size = block(target, rows, shape[-1], parted=self.parted)
        if size is None:
            return twin
        return lambda *arrays: launch(
            function,
            arrays,
            self.reads,
            self.makes,
            dtypes,
            shape,
            target=target,
            size=size,
            interpret=interpret,
            name=self.name,
        )

    def _whole(
        self,
        function: Callable[..., tuple],
        dtypes: Sequence[Any],
        shape: tuple[int, ...],
        *arrays: jax.Array,
    ) -> tuple[jax.Array, ...]:
        lead = tuple(range(len(shape) - 1))

        def widened(array, kind):
            if kind in ("each", "row"):
                return array
            return jnp.expand_dims(array, lead if kind == "column" else (*lead, -1))

        blocks = map(widened, arrays, self.reads)
        made = function(Tile(shape), *blocks)
        return tuple(
            (new.reshape(-1) if kind == "column" else new).astype(dtype)
            for new, kind, dtype in zip(made, self.makes, dtypes, strict=True)
        )


def by_platform(
    impl: str,
    arrays: Sequence[jax.Array],
    *,
    twin: Callable[..., Any],
    gpu: Callable[..., Any],
    tpu: Callable[..., Any],
    interpreted: Callable[..., Any],
) -> Any:
    """What `impl` chooses of four ways to make the same; see `Kernel`.

    Args:
      impl: one of `IMPLS`.
      arrays: what all of them read.
      twin: XLA's way: of "xla", and of "auto" on a CPU.
      gpu: otherwise on a GPU.
      tpu: and on a TPU.
      interpreted: of "pallas" on a CPU.

    Example:
      >>> ways = {"twin": jnp.sin, "gpu": jnp.cos, "tpu": jnp.cos}
      >>> x = (jnp.zeros(()),)
      >>> [float(by_platform(i, x, **ways, interpreted=jnp.exp)) for i in IMPLS[1:]]
      [0.0, 1.0]
    """
    on_cpu = impl == "auto" and jax.default_backend() == "cpu"
    if impl == "xla" or on_cpu:
        return twin(*arrays)
    plain = twin if impl == "auto" else interpreted
    return jax.lax.platform_dependent(
        *arrays, cuda=gpu, rocm=gpu, tpu=tpu, default=plain
    )


def check(impl: str) -> None:
    """Raises a ValueError for a way that there is not.

    Example:
      >>> check("cuda")
      Traceback (most recent call last):
      ...
      ValueError: impl='cuda': ...
    """
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r}: {nearest(impl, IMPLS)}")
