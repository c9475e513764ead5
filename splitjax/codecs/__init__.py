"""What crosses a link instead of an array: pure codecs of pytrees, and their glue."""

from splitjax.codecs.binary import binary as binary
from splitjax.codecs.binary import pack_signs as pack_signs
from splitjax.codecs.binary import sign as sign
from splitjax.codecs.c3 import c3 as c3
from splitjax.codecs.cast import cast as cast
from splitjax.codecs.delta import delta as delta
from splitjax.codecs.feedback import feedback as feedback
from splitjax.codecs.identity import identity as identity
from splitjax.codecs.lossless import lossless as lossless
from splitjax.codecs.perturb import perturb as perturb
from splitjax.codecs.quantize import quantize as quantize
from splitjax.codecs.ragged import ragged as ragged
from splitjax.codecs.random_k import random_k as random_k
from splitjax.codecs.randomize import randomize as randomize
from splitjax.codecs.scaled_sign import scaled_sign as scaled_sign
from splitjax.codecs.top_k import top_k as top_k
from splitjax.core.codec import Codec as Codec
from splitjax.core.codec import Context as Context
from splitjax.core.codec import Link as Link
from splitjax.core.codec import chain as chain
from splitjax.core.codec import nonfinite as nonfinite
from splitjax.core.codec import state_bytes as state_bytes
from splitjax.core.codec import wire_bytes as wire_bytes
from splitjax.core.lift import on_tree as on_tree
from splitjax.core.message import Sized as Sized
