"""What crosses a link instead of an array: pure codecs of pytrees, and their glue."""

from splitjax.codecs.cast import cast as cast
from splitjax.codecs.identity import identity as identity
from splitjax.codecs.lossless import lossless as lossless
from splitjax.codecs.quantize import nonfinite as nonfinite
from splitjax.codecs.quantize import quantize as quantize
from splitjax.codecs.ragged import ragged as ragged
from splitjax.core.codec import Codec as Codec
from splitjax.core.codec import Context as Context
from splitjax.core.codec import Link as Link
from splitjax.core.codec import chain as chain
from splitjax.core.codec import state_bytes as state_bytes
from splitjax.core.codec import wire_bytes as wire_bytes
from splitjax.core.lift import on_tree as on_tree
from splitjax.core.message import Sized as Sized
