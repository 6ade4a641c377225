"""Error feedback (Karimireddy et al., 2019): nothing is lost, only said later."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit import parallel
from tests.parallel.exchanges import COMPRESSORS, gradients, run


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_was_said_and_what_is_remembered_is_what_there_was(name: str, x64: None) -> None:
    """The means of all steps and the mean memory after the last add up to the means of all gradients."""
    tx = parallel.error_feedback(COMPRESSORS[name]())
    said, state = run(tx, steps=5)
    for leaf in said[0]:
        total = sum(np.asarray(m[leaf][0]) for m in said) + np.asarray(state.error[leaf]).mean(0)
        want = sum(np.asarray(gradients(t)[leaf]).mean(0) for t in range(5))
        # Some hundred roundings of numbers below 20, and scales that are float32 divide nothing twice.
        np.testing.assert_allclose(total, want, rtol=0, atol=1e-12)


def test_with_nothing_lost_there_is_no_memory() -> None:
    said, state = run(parallel.error_feedback(parallel.mean_compressor()), steps=2)
    assert not any(np.any(e) for e in jax.tree.leaves(state.error))
    np.testing.assert_allclose(said[1]["bias"][0], np.mean(gradients(1)["bias"], axis=0), atol=1e-6)


def test_a_memory_that_decays_forgets(x64: None) -> None:
    """With decay 0 every step is the compressor alone; with 1/2, what was not sent counts half in the next step."""
    top = parallel.top_k_compressor(0.5)
    alone, _ = run(top, steps=3)
    none, _ = run(parallel.error_feedback(top, decay=0.0), steps=3)
    for a, b in zip(alone, none, strict=True):
        np.testing.assert_array_equal(a["bias"], b["bias"])
    half = parallel.error_feedback(top, decay=0.5)
    g = jnp.array([[4.0, 2.0]])
    step = jax.vmap(half.update, axis_name="replica")
    _, state = step(g, jax.vmap(half.init)(g))
    np.testing.assert_array_equal(step(jnp.array([[0.0, 0.0]]), state)[0], [[0.0, 1.0]])


def test_the_memory_does_not_grow_where_replicas_differ(x64: None) -> None:
    """What public hooks remember, the sum minus the mean of all, has the same mean, and walks at random: the difference
    between replicas is never discharged."""
    tx = parallel.powersgd(2, min_compression_rate=0.0)
    steps = 300
    said, state = run(tx, steps=steps)
    own = np.asarray(state.error["kernel"])
    theirs = sum(np.asarray(gradients(t)["kernel"]) for t in range(steps)) - sum(m["kernel"] for m in said)
    np.testing.assert_allclose(own.mean(0), theirs.mean(0), rtol=0, atol=1e-9)
    # A walk of 300 steps is at 17 standard deviations in the mean; a matrix of 6 x 4 is cleared about every third step.
    assert np.abs(own).max() < np.abs(theirs).max() / 2


def test_what_is_no_compressor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compressor must be a compressor of gk\.parallel"):
        parallel.error_feedback(gk.sgd(0.1))
    with pytest.raises(ValueError, match="compressor must be an optax transformation"):
        parallel.error_feedback(0.1)  # pyright: ignore
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\]"):
        parallel.error_feedback(parallel.mean_compressor(), decay=1.5)
    with pytest.raises(ValueError, match="exchange must be a compressor"):
        parallel.compressor_of(gk.sgd(0.1))
