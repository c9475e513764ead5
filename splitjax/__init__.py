"""Split learning between edge and cloud in JAX: the nouns.

Everything else is one import down: `splitjax.codecs`, `.factors`, `.optim`,
`.adapters`, `.models`, `.algorithms`, `.data`, `.runtime`, `.train`.
"""

from splitjax.core.algorithm import Algorithm as Algorithm
from splitjax.core.codec import Codec as Codec
from splitjax.core.codec import Link as Link
from splitjax.core.codec import chain as chain
from splitjax.core.codec import state_bytes as state_bytes
from splitjax.core.codec import wire_bytes as wire_bytes
from splitjax.core.cut import cut as cut
from splitjax.core.factor import Factor as Factor
from splitjax.core.factor import dot as dot
from splitjax.core.factor import factorize as factorize
from splitjax.core.factor import materialize as materialize
from splitjax.core.keys import fold as fold
from splitjax.core.lift import on_tree as on_tree
from splitjax.core.message import Sized as Sized
from splitjax.core.split import Split as Split
from splitjax.core.stage import Stage as Stage
from splitjax.core.stage import join as join
from splitjax.core.stage import repeat as repeat
from splitjax.core.stage import with_loss as with_loss
from splitjax.core.tree import where as where
