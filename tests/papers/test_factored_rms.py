"""The factored second moment of Adafactor (Shazeer, Stern, 2018)."""

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}), default=ARRAYS)


def test_squares_of_rank_one_are_factored_exactly(x64: None) -> None:
    """Then the first direction is the sign of the gradient, and the later ones are those without factors."""
    rank_one = [jnp.abs(normal(2 * i, 6, 1)) * normal(2 * i + 1, 1, 4) for i in range(1)]
    u = updates(gk.scale_by_factored_rms(min_dim_size_to_factor=2), rank_one[0], rank_one)
    assert_equal(u, [jnp.sign(g) for g in rank_one])
    # Rows that keep their shares: the running mean has rank one too.
    same = [c * rank_one[0] for c in (1.0, -3.0, 0.5)]
    ours, full = (
        updates(gk.scale_by_factored_rms(min_dim_size_to_factor=2, factored=on), same[0], same) for on in (True, False)
    )
    assert_equal(ours, full)


def test_a_small_side_and_a_vector_keep_every_entry() -> None:
    tx = gk.scale_by_factored_rms(min_dim_size_to_factor=5)
    state = tx.init({"small": jnp.zeros((6, 4)), "large": jnp.zeros((6, 5)), "bias": jnp.zeros(8)})
    assert state.nu["small"].shape == (6, 4) and state.nu["bias"].shape == (8,)
    assert (state.rows["large"].shape, state.columns["large"].shape) == ((6, 1), (1, 5))
    assert isinstance(state.nu["large"], optax.MaskedNode) and isinstance(state.rows["small"], optax.MaskedNode)


def test_the_axis_of_a_stack_does_not_count_for_the_smallest_size() -> None:
    """optax would factor 8 layers of 3 inputs and 6 outputs across layers."""
    tx = gk.scale_by_factored_rms(min_dim_size_to_factor=4, layout=STACKED)
    assert tx.init({"layers": jnp.zeros((8, 3, 6))}).nu["layers"].shape == (8, 3, 6)


def test_no_decay_before_the_second_step_and_none_above_the_cap(x64: None) -> None:
    """b_1 = 0, b_2 = 1 - 2^-0.8, b_3 at the cap; an offset holds it back."""
    one, g = jnp.ones(1), [jnp.full((1,), c) for c in (3.0, 1.0, 2.0)]
    b = 1 - 2**-0.8
    v = [9.0, b * 9 + (1 - b), 0.5 * (b * 9 + (1 - b)) + 0.5 * 4]
    got = updates(gk.scale_by_factored_rms(b2_cap=0.5, eps=0.0), one, g)
    assert 1 - 2**-0.8 < 0.5 < 1 - 3**-0.8
    assert_equal(got, [x / np.sqrt(n) for x, n in zip(g, v, strict=True)])
    assert_equal(updates(gk.scale_by_factored_rms(decay_offset=2, eps=0.0), one, g), [jnp.sign(x) for x in g])


def test_optax_factors_a_stack_across_its_layers() -> None:
    """The two largest axes of 8 layers of 4 by 6 are the layers and the outputs; of one layer both agree."""
    stack, g = jnp.zeros((8, 4, 6)), normal(0, 8, 4, 6).astype(jnp.float32)
    ours = gk.scale_by_factored_rms(min_dim_size_to_factor=2, layout=STACKED)
    theirs = optax.scale_by_factored_rms(min_dim_size_to_factor=2)

    def first(tx: optax.GradientTransformation, x: jnp.ndarray, g: jnp.ndarray) -> np.ndarray:
        return np.asarray(tx.update(g, tx.init(x), x)[0])

    u, v = first(ours, stack, g), first(theirs, stack, g)
    assert np.abs(u - v).max() > 0.5 * np.abs(u).max()
    # A mean and two roots in float32.
    np.testing.assert_allclose(u[0], first(theirs, stack[0], g[0]), rtol=1e-5)
