"""Dynamic weight average, against a list of losses."""

import jax.numpy as jnp
import numpy as np

from gradkit.aggregation import dwa
from tests.papers.stacks import draw, runner


def test_weights_follow_from_the_means_of_the_last_two_epochs(x64: None) -> None:
    T, steps = 1.5, 3
    run, state = runner(dwa(num_tasks=4, temperature=T, steps_per_epoch=steps)), None
    losses, J = np.abs(draw(0, 12, 4)) + 0.1, draw(1)
    for t, L in enumerate(losses):
        w = np.ones(4)
        if t >= 2 * steps:
            first = t // steps * steps
            r = losses[first - steps : first].mean(0) / losses[first - 2 * steps : first - steps].mean(0)
            w = 4 * np.exp(r / T) / np.exp(r / T).sum()
        out, state = run(J, state, losses=jnp.asarray(L))
        np.testing.assert_allclose(out, w @ J, rtol=1e-12, atol=1e-14)


def test_a_loss_that_falls_slowly_weighs_more(x64: None) -> None:
    run, state, J = runner(dwa(num_tasks=4, steps_per_epoch=1)), None, np.eye(4, 9)
    for t in range(4):
        out, state = run(J, state, losses=jnp.asarray([1.0, 0.5**t, 0.9**t, 1.1**t]))
    assert out[3] > out[0] > out[2] > out[1]
    np.testing.assert_allclose(out.sum(), 4, rtol=1e-12)
