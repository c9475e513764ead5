"""What a codec does for privacy: the noise in what it sends."""

from typing import NamedTuple

RANDOMIZED_RESPONSE, LAPLACE, GAUSS = "randomized_response", "laplace", "gauss"


class Mechanism(NamedTuple):
    """Noise that hides an example, as an accountant reads it.

    Attributes:
      kind: "randomized_response", "laplace" or "gauss".
      level: the epsilon of one release; for "gauss" the standard deviation over the
        sensitivity.
      per: what one release is: a "value", or a "row" of the leading axis.

    Example:
      >>> Mechanism(RANDOMIZED_RESPONSE, 2.0, "value").level
      2.0
    """

    kind: str
    level: float
    per: str
