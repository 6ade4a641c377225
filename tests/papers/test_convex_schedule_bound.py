"""The bound of convex theory: its formula, the order of schedules, and the schedule that minimises it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from gradkit.diagnostics import Terms, bound_curve, convex_schedule_bound, optimal_base_rate

T = 400
t = np.arange(T)


def wsd(cooldown: float, shape: str = "linear") -> np.ndarray:
    p = np.clip(t - (1 - cooldown) * T, 0, None) / (cooldown * T)
    return 1 - (p if shape == "linear" else np.sqrt(p))


# Schedule at the base rate 1 -> best bound and base rate at G = D = 1, from the official code, to their last digit.
SCHEDULES = {
    "linear": (1 - t / T, 0.10063, 0.049563),
    "cosine": (0.5 * (1 + np.cos(np.pi * t / T)), 0.10339, 0.048242),
    "wsd 40 %": (wsd(0.4), 0.10376, 0.030070),
    "wsd 20 % 1-sqrt": (wsd(0.2, "1-sqrt"), 0.10729, 0.026846),
    "wsd 20 %": (wsd(0.2), 0.10932, 0.025374),
    "constant": (np.ones(T), 0.13754, 0.018176),
}


def by_the_formula(eta: np.ndarray, G: np.ndarray, D: float) -> float:
    """Sum by sum, as it is printed, with steps counted from 1."""
    T = len(eta)
    total = eta.sum()
    out = D**2 / (2 * total) + (eta**2 * G**2).sum() / (2 * total)
    for k in range(1, T):
        tail, inclusive = eta[k:].sum(), eta[k - 1 :].sum()
        out += 0.5 * eta[k - 1] / tail * (eta[k - 1 :] ** 2 * G[k - 1 :] ** 2).sum() / inclusive
    return out


def test_the_formula_term_by_term() -> None:
    """Random rates, some of them 0, and gradients of random norms; the terms add up."""
    rng = np.random.default_rng(0)
    eta, G = rng.uniform(0, 1, 17), rng.uniform(0.5, 2, 17)
    eta[[0, 5, 6]] = 0
    want = by_the_formula(eta, G, 1.7)
    terms = convex_schedule_bound(eta, G, 1.7, terms=True)
    # Some 50 additions of positive numbers.
    np.testing.assert_allclose(convex_schedule_bound(eta, G, 1.7), want, rtol=50 * 2.0**-53)
    assert isinstance(terms, Terms)
    np.testing.assert_allclose(sum(terms), want, rtol=50 * 2.0**-53)
    np.testing.assert_allclose(terms.distance, 1.7**2 / 2 / eta.sum(), rtol=1e-14)
    curve = bound_curve(eta[:6], G[:6], 1.7)
    np.testing.assert_allclose(curve[1:5], [by_the_formula(eta[:n], G[:n], 1.7) for n in range(2, 6)], rtol=1e-14)
    # No step was made yet; and a last rate of 0 makes the last factor infinite.
    assert np.isinf(curve[[0, 5]]).all()


def test_a_constant_rate_in_closed_form() -> None:
    """Omega_t = 1 / (2 gamma t) + gamma / 2 + (gamma / 2) H_{t-1}."""
    gamma, steps = 0.3, np.arange(1, 60)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / steps[:-1])])
    want = 1 / (2 * gamma * steps) + gamma / 2 + gamma / 2 * harmonic
    np.testing.assert_allclose(bound_curve(np.full(59, gamma)), want, rtol=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_numbers_of_the_official_code(name: str) -> None:
    rates, bound, base_rate = SCHEDULES[name]
    found = optimal_base_rate(rates)
    assert found.bound == pytest.approx(bound, abs=5e-6) and found.base_rate == pytest.approx(base_rate, abs=5e-7)
    at = convex_schedule_bound(found.base_rate * rates)
    assert at == pytest.approx(found.bound, rel=1e-13)
    assert all(convex_schedule_bound(c * found.base_rate * rates) > at for c in (0.9, 1.1))


def test_the_order_of_schedules() -> None:
    """As in training: a linear decay, a cosine, a long and a short cooldown, a constant rate; 1-sqrt cools better."""
    bounds = [optimal_base_rate(rates).bound for rates, _, _ in SCHEDULES.values()]
    assert bounds == sorted(bounds) and len(set(bounds)) == len(bounds)


def test_the_base_rate_scales_as_distance_over_gradient() -> None:
    rates = SCHEDULES["cosine"][0]
    one, other = optimal_base_rate(rates), optimal_base_rate(5 * rates, 3.0, 2.0)
    np.testing.assert_allclose(other.base_rate, one.base_rate * 2 / 3 / 5, rtol=1e-13)
    np.testing.assert_allclose(other.bound, one.bound * 6, rtol=1e-13)


def test_the_loss_falls_in_the_cooldown() -> None:
    """The bound falls faster in a cooldown than before it, with rates that are smaller: the sudden drop of WSD."""
    rates = 0.025 * wsd(0.2)
    curve = bound_curve(rates)
    # The last 80 steps, with a smaller rate, against the 80 before them.
    assert curve[319] - curve[399] > 2 * (curve[239] - curve[319]) > 0


def test_descent_on_the_bound_finds_the_linear_decay(x64: None) -> None:
    """Over all schedules of 100 steps, from a constant one: a line that would reach 0 after the last step."""
    n = 100
    value_and_grad = jax.jit(jax.value_and_grad(lambda log: convex_schedule_bound(jnp.exp(log))))

    def both(log: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(x, np.float64) for x in value_and_grad(log)]

    found = scipy.optimize.minimize(both, np.full(n, np.log(0.02)), jac=True, method="L-BFGS-B")
    rates, line = np.exp(found.x), 1 - np.arange(n) / n
    # The minimum is below the bound of the line, but by little: the last steps alone are another.
    best = optimal_base_rate(line).bound
    assert 0.97 * best < found.fun < best
    # Two steps of the line: what the last rates, which are larger, bend it by.
    assert np.abs(rates / rates[0] - line)[:90].max() < 2 / n


def test_traced_equals_numpy(x64: None) -> None:
    """JAX computes the same bound, curve and rate, with finite derivatives also where rates are 0."""
    rates, G = np.concatenate([[0.0], 1 - np.arange(12) / 12]), np.linspace(1, 2, 13)
    for function in (convex_schedule_bound, bound_curve, optimal_base_rate):
        want, got = function(rates, G, 1.5), jax.jit(function)(rates, G, 1.5)
        for x, y in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-13)
    assert np.isfinite(jax.grad(convex_schedule_bound)(jnp.asarray(rates))).all()


def test_many_steps_in_float32_are_warned_about() -> None:
    shape = jax.ShapeDtypeStruct((100_001,), jnp.float32)
    with pytest.warns(UserWarning, match="sums 100001 float32 numbers"):
        jax.eval_shape(convex_schedule_bound, shape)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 2)),), "learning_rates must be one rate per step"),
        (([],), "learning_rates must be one rate per step"),
        (([1.0, -1.0],), "learning_rates must be finite, >= 0 and not all 0"),
        (([0.0, 0.0],), "learning_rates must be finite, >= 0 and not all 0"),
        (([1.0, np.nan],), "learning_rates must be finite"),
        (([1.0, 1.0], np.ones(3)), "grad_norms must be one number or one per step"),
        (([1.0, 1.0], -1.0), "grad_norms must be finite and >= 0"),
        (([1.0, 1.0], 1.0, np.inf), "distance must be finite and >= 0"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    for function in (convex_schedule_bound, bound_curve, optimal_base_rate):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
