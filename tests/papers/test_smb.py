"""SMB (Birbil et al., 2021): the model of a failed step, per tensor, and the rate that follows the failures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.optimizers.second_order.smb import independent_model_step, model_step, smb, smbi

# A dozen operations in float64, none of which cancels.
F64 = 1e-12


def papers_step(g: np.ndarray, y: np.ndarray, lr: float, eta: float) -> np.ndarray:
    """The coefficients c_g, c_s and c_y as the paper writes them."""
    s = -lr * g
    length = np.linalg.norm
    sigma = 0.5 * (length(s) * (length(y) + length(g) / eta) - y @ s)
    theta = (y @ s + 2 * sigma) ** 2 - (s @ s) * (y @ y)
    c_g = -(s @ s) / (2 * sigma)
    c_s = c_g / theta * (-(y @ s + 2 * sigma) * (y @ g) + (y @ y) * (s @ g))
    c_y = c_g / theta * (-(y @ s + 2 * sigma) * (s @ g) + (s @ s) * (y @ g))
    return c_g * g + c_s * s + c_y * y


def test_the_step_of_the_model_is_that_of_the_paper(x64):
    g, y = np.random.default_rng(0).standard_normal((2, 5))
    got = model_step({"w": jnp.asarray(g)}, {"w": jnp.asarray(y)}, jnp.asarray(0.7), 0.9, None)["w"]
    np.testing.assert_allclose(got, papers_step(g, y, 0.7, 0.9), rtol=F64)


def test_tensors_have_models_of_their_own_and_a_zero_gradient_stays(x64):
    """The other tensor's numbers do not enter, also those of the other layer of a stack; no curvature gives eta s."""
    g, y = np.random.default_rng(1).standard_normal((2, 2, 3, 2))
    trees = [{"ScanBlock_0": {"kernel": jnp.asarray(x)}, "b": jnp.zeros(2), "c": jnp.ones(2)} for x in (g, y)]
    trees[1] |= {"b": jnp.ones(2), "c": jnp.zeros(2)}
    got = model_step(trees[0], trees[1], jnp.asarray(0.7), 0.9, None)
    for layer in range(2):
        want = papers_step(g[layer].ravel(), y[layer].ravel(), 0.7, 0.9)
        np.testing.assert_allclose(got["ScanBlock_0"]["kernel"][layer].ravel(), want, rtol=F64)
    np.testing.assert_array_equal(got["b"], 0)
    np.testing.assert_allclose(got["c"], -0.9 * 0.7, rtol=F64)


def test_a_step_that_decreases_the_loss_is_that_of_sgd_and_one_that_does_not_is_corrected():
    """Along x^2 / 2 a step of rate lr decreases by lr (1 - lr / 2) g^2: enough of it up to lr = 1.8."""
    x = jnp.array(2.0)
    extra = {"value_fn": lambda x: x**2 / 2, "grad_fn": lambda x: x}
    for rate, model in ((1.75, 0), (1.85, 1)):
        tx = smb(rate)
        u, state = tx.update(x, tx.init(x), x, **extra)
        assert int(optax.tree.get(state, "metrics")["model_step"]) == model
        want = papers_step(np.array([2.0]), np.array([-rate * 2.0]), rate, 0.99)[0] if model else -rate * 2.0
        # float32: a dozen roundings.
        np.testing.assert_allclose(np.asarray(u), want, rtol=1e-6)


def test_the_rate_follows_the_share_of_failures():
    """Two updates an epoch: without failures the rate rises by 1 / 0.5, up to the largest; with them it falls."""
    x = jnp.array(1.0)
    tx = smb(1.0, auto_schedule=True, steps_per_epoch=2, lr_decay=0.5, max_learning_rate=2.0)
    update = jax.jit(
        lambda state, slope: tx.update(
            slope, state, x, value=jnp.array(0.0), value_fn=lambda p: slope * (p - x), grad_fn=lambda p: slope
        )
    )
    rates, state = [], tx.init(x)
    # A loss that rises along the step is what a negative decrease looks like.
    failing = jax.jit(
        lambda state: tx.update(
            x, state, x, value=jnp.array(0.0), value_fn=lambda p: jnp.array(1.0), grad_fn=lambda p: p
        )
    )
    for t in range(8):
        _, state = update(state, jnp.array(1.0)) if t < 4 else failing(state)
        rates.append(float(optax.tree.get(state, "metrics")["last_learning_rate"]))
    assert rates == [1, 1, 2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("make", [smb, smbi])
def test_missing_functions_are_named(make):
    x = jnp.ones(2)
    tx = make()
    with pytest.raises(ValueError, match="value_fn"):
        tx.update(x, tx.init(x), x)


def papers_independent_step(g: np.ndarray, h: np.ndarray, y: np.ndarray, lr: float, eta: float) -> np.ndarray:
    """The coefficients as the paper writes them, of the failed gradient g on the step along h."""
    s = -lr * h
    length = np.linalg.norm
    sigma = 0.5 * (length(s) * (length(y) + length(h) / eta) - y @ s)
    theta = (y @ s + 2 * sigma) ** 2 - (s @ s) * (y @ y)
    c_g = -(s @ s) / (2 * sigma)
    c_s = c_g / theta * (-(y @ s + 2 * sigma) * (y @ g) + (y @ y) * (s @ g))
    c_y = c_g / theta * (-(y @ s + 2 * sigma) * (s @ g) + (s @ s) * (y @ g))
    return c_g * g + c_s * s + c_y * y


def test_with_independent_batches_a_failure_waits_and_the_next_batch_has_the_model(x64):
    """Ten updates of two tensors on losses a_t |x|^2 / 2 + b_t x, beside the paper's formulas; steps of all kinds."""
    random = np.random.default_rng(2)
    tx, lr, eta, armijo = smbi(1.0, eta=0.9), 1.0, 0.9, 0.1
    x = {"v": random.standard_normal(3), "w": random.standard_normal(2)}

    def loss(x, curvature, b):
        return sum(jnp.sum(curvature * x[k] ** 2 / 2 + b[k] * x[k]) for k in x)

    @jax.jit
    def update(g, state, x, curvature, b):
        f = lambda x: loss(x, curvature, b)  # noqa: E731
        return tx.update(g, state, x, value_fn=f, grad_fn=jax.grad(f))

    state, kept, kinds = tx.init(jax.tree.map(jnp.asarray, x)), None, []
    for curvature in (0.5, 3.0, 0.5, 3.0, 4.0, 1.0, 1.5, 3.0, 2.5, 0.3):
        b = {k: random.standard_normal(v.shape) for k, v in x.items()}
        g = {k: curvature * x[k] + b[k] for k in x}
        value = lambda x: sum(np.sum(curvature * x[k] ** 2 / 2 + b[k] * x[k]) for k in x)  # noqa: B023, E731
        if kept is not None:
            # The Hessian is the curvature times the identity.
            want, kept = {k: papers_independent_step(kept[k], g[k], -lr * curvature * g[k], lr, eta) for k in x}, None
            kinds.append("model")
        elif value({k: x[k] - lr * g[k] for k in x}) <= value(x) - armijo * lr * sum(v @ v for v in g.values()):
            want = {k: -lr * g[k] for k in x}
            kinds.append("trial")
        else:
            want, kept = {k: np.zeros_like(x[k]) for k in x}, g
            kinds.append("failed")
        u, state = update(*(jax.tree.map(jnp.asarray, tree) for tree in (g,)), state, x, curvature, b)
        assert int(optax.tree.get(state, "metrics")["model_step"]) == (kinds[-1] == "model")
        for k in x:
            np.testing.assert_allclose(u[k], want[k], rtol=F64, atol=1e-15)
            x[k] = x[k] + want[k]
    assert set(kinds) == {"model", "trial", "failed"} and kinds.count("model") >= 2


def test_of_the_same_batch_again_the_independent_model_is_the_model(x64):
    g, y = ({"w": jnp.asarray(x), "b": jnp.zeros(2)} for x in np.random.default_rng(3).standard_normal((2, 5)))
    both = model_step(g, y, jnp.asarray(0.7), 0.9, None), independent_model_step(g, g, y, jnp.asarray(0.7), 0.9, None)
    np.testing.assert_allclose(both[1]["w"], both[0]["w"], rtol=F64)
    np.testing.assert_array_equal(both[1]["b"], 0)


def test_the_rate_of_independent_batches_falls_at_half_the_share():
    """Failures and steps from the model alternate: a share of 1 / 2, above gamma / 2 = 0.45 and not above gamma."""
    x = jnp.array(1.0)
    for gamma, rates in ((0.9, [1, 1, 0.5, 0.5]), (1.0, [1, 1, 2, 2])):
        tx = smbi(1.0, auto_schedule=True, steps_per_epoch=2, gamma=gamma, lr_decay=0.5)
        failing = jax.jit(
            lambda state, tx=tx: tx.update(
                x, state, x, value=jnp.array(0.0), value_fn=lambda p: jnp.array(1.0), grad_fn=lambda p: p
            )
        )
        got, state = [], tx.init(x)
        for _ in range(4):
            _, state = failing(state)
            got.append(float(optax.tree.get(state, "metrics")["last_learning_rate"]))
        assert got == rates
