"""The exchange of methods with shared random directions: one number per replica, or one byte."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide
from gradkit.parallel.compressors import number_of_replicas
from gradkit.parallel.shared_seed_spsa import log_byte_decode, log_byte_encode, shared_seed_gradient
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning Using Shared "
    "Randomness",
    "Zelikman et al.",
    2023,
    "2306.10015",
)
WIRES = ("int8", "log_byte", "float32")


def shared_seed_exchange(rho: Scalar, like: Any, *, key: Key, wire: str = "int8", axis_name: Any = "replica") -> Any:
    """The mean over replicas of the directional derivative that each measured along its own random direction.

    Equations:

        z_j = direction(fold_in(fold_in(key, j), 0))     of replica j, which measured rho_j along it
        g = (1/W) sum_j rho_j z_j                        on every replica, which draws all z_j again from the key

    What is sent of rho:

        s = max_j |rho_j| / 127,  round(rho_j / s)       wire "int8": W bytes, and one float32
        sign and logarithm of `log_byte_encode`          wire "log_byte": W bytes
        rho_j                                            wire "float32": 4 W bytes

    The directions are those of `shared_seed_spsa` with one sample. With a pool of seeds, as in `fed_kseed`, the
    exchange is `replica_mean` of its accumulator.

    Args:
      rho: a real number, measured by this replica.
      like: the parameters, or `jax.ShapeDtypeStruct`s of them.
      key: a random key (typed key or integer), the same on all replicas, and another one in every step.
      wire: "int8", "log_byte" or "float32". Default "int8".
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A tree like the parameters, in their dtypes, the same bits on all replicas: parameters that start equal stay
      equal, although only W numbers are exchanged. Memory: one direction. Collectives: an all-gather of W bytes (of W
      float32), and with "int8" an all-reduce of one float32.

    Raises:
      ValueError: `rho` no real scalar, an unknown wire, no axis of this name.

    Example:
      >>> x = jnp.zeros(3)
      >>> g = jax.vmap(lambda rho: shared_seed_exchange(rho, x, key=0), axis_name="replica")(jnp.array([127.0, -3.0]))
      >>> bool((g[0] == shared_seed_gradient(0, jnp.array([[127.0], [-3.0]]), x)).all())
      True

    Reference: Zelikman et al. Just One Byte (per gradient). 2023, arXiv 2306.10015; the numbers of FedKSeed, Qin et al.
    2023, arXiv 2312.06353, are exchanged in the same way.
    """
    checks.choice("wire", wire, WIRES)
    checks.axis_name("axis_name", axis_name, optional=False)
    number_of_replicas("shared_seed_exchange", axis_name)
    rho = jnp.asarray(rho)
    if rho.shape != () or not jnp.issubdtype(rho.dtype, jnp.floating):
        raise ValueError(f"rho must be one real number per replica, got {rho.dtype} of shape {rho.shape}")
    rho = rho.astype(jnp.float32)
    if wire == "float32":
        scalars = jax.lax.all_gather(rho, axis_name)
    elif wire == "log_byte":
        scalars = log_byte_decode(jax.lax.all_gather(log_byte_encode(rho), axis_name))
    else:
        scale = jax.lax.pmax(jnp.abs(rho), axis_name) / 127
        byte = jnp.clip(jnp.round(divide(rho, scale)), -127, 127).astype(jnp.int8)
        scalars = jax.lax.all_gather(byte, axis_name).astype(jnp.float32) * scale
    return shared_seed_gradient(key, scalars[:, None], like)


register(
    shared_seed_exchange,
    form="program",
    paper=PAPER,
    collectives="replicas",
    notes="one byte per replica and step, whatever the size of the parameters",
)
