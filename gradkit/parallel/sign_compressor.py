"""Compression to signs: one bit per entry, and one scale per leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit.catalogue import Paper, register
from gradkit.parallel.compressors import Compressor, compressing, exchange_of, no_state

PAPER = Paper(
    "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", "Karimireddy et al.", 2019, "1901.09847"
)
PER_BYTE = 8


def sign_compressor(*, axis_name: Any = "replica") -> optax.GradientTransformationExtraArgs:
    """The compressor that sends one bit per entry: its sign, times the mean absolute value of its leaf.

    Equations, for a leaf p:

        s = mean |p|,    sent = s sign(p)        with the sign of 0 as +1

    Eight bits are sent in a byte, and every replica decodes those of all replicas. It is biased: use it inside
    `error_feedback`.

        tx = optax.chain(gk.parallel.error_feedback(gk.parallel.sign_compressor()), gk.sgd(0.1))

    Args:
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the mean of what was sent out. No state.
      Collectives: an all-gather of uint8, n / 8 bytes from every replica, and of one float32 per leaf.

    Raises:
      ValueError: at `update`, no axis of this name.

    Example:
      >>> tx = sign_compressor()
      >>> g = jnp.array([[1.0, -3.0], [2.0, 2.0]])  # two replicas
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g)[0])
      [2. 0.]

    Reference: Karimireddy et al. Error Feedback Fixes SignSGD and other Gradient Compression Schemes. 2019, arXiv
    1901.09847: EF-signSGD. In the paper one scale is that of the whole gradient; here, as in its code, each leaf has
    one.
    """

    def encode(tree: Any, state: Any, *, worker: Any, key: Any = None) -> tuple[Any, Any]:
        del worker, key
        leaves = jax.tree.leaves(tree)
        bits = jnp.concatenate([(x >= 0).reshape(-1) for x in leaves])
        scales = [jnp.sum(jnp.abs(x)).astype(jnp.float32) / max(x.size, 1) for x in leaves]
        return (jnp.packbits(bits, bitorder="little"), jnp.stack(scales)), state

    def decode(payload: Any, like: Any) -> Any:
        leaves, structure = jax.tree.flatten(like)
        size = sum(x.size for x in leaves)
        signs = 2 * jnp.unpackbits(payload[0], count=size, bitorder="little").astype(jnp.int8) - np.int8(1)
        pieces = jnp.split(signs, np.cumsum([x.size for x in leaves])[:-1])
        out = [
            (payload[1][i].astype(x.dtype) * p.astype(x.dtype)).reshape(x.shape)
            for i, (p, x) in enumerate(zip(pieces, leaves, strict=True))
        ]
        return structure.unflatten(out)

    exchange = exchange_of("sign_compressor", encode, decode)
    return compressing("sign_compressor", Compressor(no_state, exchange, encode, decode), axis_name)


register(sign_compressor, form="exchange", paper=PAPER, collectives="replicas", notes="one bit per entry")
