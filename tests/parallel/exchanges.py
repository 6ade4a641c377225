"""What tests of exchanges share: the compressors there are, and gradients of a few replicas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import parallel

W = 4
SHAPES = {"bias": (3,), "kernel": (6, 4), "scale": ()}
# Compressors as they are tested around `error_feedback`; each loses something.
COMPRESSORS: dict[str, Any] = {
    "int8": parallel.int8_compressor,
    "int4": lambda: parallel.int8_compressor(bits=4, block=5),
    "low_rank": lambda: parallel.low_rank_compressor(1, min_compression_rate=0.0),
    "low_rank_alternating": lambda: parallel.low_rank_compressor(1, min_compression_rate=0.0, alternating=True),
    "random_k": lambda: parallel.random_k_compressor(0.2, key=0),
    "sign": parallel.sign_compressor,
    "ternary": lambda: parallel.ternary_compressor(key=0),
    "ternary_int8": lambda: parallel.ternary_compressor(key=0, wire="int8"),
    "top_k": lambda: parallel.top_k_compressor(0.2),
}


def gradients(step: int, shapes: Any = None, replicas: int = W, seed: int = 0, dtype: Any = np.float64) -> Any:
    """Normal numbers with a mean that all replicas share, one row per replica."""
    rng = np.random.default_rng([seed, step])
    shapes = SHAPES if shapes is None else shapes
    drawn = {name: rng.standard_normal(s) + rng.standard_normal((replicas, *s)) for name, s in shapes.items()}
    return {
        name: jnp.asarray(x.astype(dtype if jax.config.jax_enable_x64 else np.float32)) for name, x in drawn.items()
    }


def run(tx: Any, steps: int, *, fixed: bool = False, **given: Any) -> tuple[list[Any], Any]:
    """What every step says, on all replicas, and the state after the last one; `fixed`: one gradient at all steps."""
    state = parallel.init_replicas(tx, gradients(0, **given))
    step = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    said = []
    for t in range(steps):
        mean, state = step(gradients(0 if fixed else t, **given), state)
        said.append(mean)
    return said, state
