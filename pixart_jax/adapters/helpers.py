"""What only helps to train the rest: no picture is drawn with it, and no other format has a place for it."""

from pixart_jax.adapters.aligned import PROJECTOR
from pixart_jax.adapters.followed import FAKE
from pixart_jax.adapters.weighed import UNCERTAINTY

# Of a trained half, names that `Adapter.drawn` leaves out.
HELPERS = (FAKE, PROJECTOR, UNCERTAINTY)
