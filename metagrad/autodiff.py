"""The one place where a quantity is declared constant for differentiation.

Every stop-gradient of the library goes through `stop_gradient`, called as `autodiff.stop_gradient(x)`. What the
meta-gradient means is the derivative of the look-ahead in which these quantities are frozen at their values; a test
replaces this function by one that replays recorded values and takes finite differences of exactly that map.
"""

from jaxtyping import Float
from torch import Tensor


def stop_gradient(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """⊥x: the value of x with every derivative, reverse and forward mode, equal to zero."""
    return x.detach()
