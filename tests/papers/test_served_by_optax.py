"""What is said of methods of optax on their cards: each against its equations in NumPy."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Card
from gradkit.training import methods
from gradkit.training.report.shown import facts, look_up
from gradkit.training.served_by_optax import SERVED
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal, updates

GRADIENTS = [np.random.default_rng(i).standard_normal(6) for i in range(8)]


@pytest.fixture(autouse=True)
def implicit() -> Iterator[None]:
    """Methods of optax promote the dtypes of their counters."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def ours(tx: optax.GradientTransformation) -> list[Any]:
    return updates(tx, normal(9, 6), [jnp.asarray(g) for g in GRADIENTS])


def test_adabelief(x64: None) -> None:
    """eps large enough to see in both of its places."""
    m = s = np.zeros(6)
    for t, (g, u) in enumerate(zip(GRADIENTS, ours(optax.adabelief(0.1, eps=1e-2, eps_root=1e-3)), strict=True), 1):
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-3
        assert_equal(u, -0.1 * m / (1 - 0.9**t) / (np.sqrt(s / (1 - 0.999**t)) + 1e-2), rtol=1e-11)


@pytest.mark.parametrize("threshold", [4.0, 5.0])
def test_radam(threshold: float, x64: None) -> None:
    """With b2 = 0.9 the variance is tractable within these steps; the first are those of momentum alone."""
    m = v = np.zeros(6)
    last, rectified = 2 / (1 - 0.9) - 1, []
    for t, (g, u) in enumerate(zip(GRADIENTS, ours(optax.radam(0.1, b2=0.9, threshold=threshold)), strict=True), 1):
        m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g**2
        rho = last - 2 * t * 0.9**t / (1 - 0.9**t)
        want = m / (1 - 0.9**t)
        rectified.append(rho >= threshold)
        if rectified[-1]:
            r = np.sqrt((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho))
            want = r * want / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        assert_equal(u, -0.1 * want, rtol=1e-11)
    assert rectified[0] is not rectified[-1]


def test_yogi(x64: None) -> None:
    m = v = np.full(6, 1e-6)
    for t, (g, u) in enumerate(zip(GRADIENTS, ours(optax.yogi(0.1)), strict=True), 1):
        m = 0.9 * m + 0.1 * g
        v = v - 0.001 * np.sign(v - g**2) * g**2
        assert_equal(u, -0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-3), rtol=1e-11)
    tx = optax.yogi(0.1)
    still, _ = tx.update(jnp.zeros(6), tx.init(jnp.zeros(6)))
    assert float(jnp.abs(jnp.asarray(still)).min()) > 0


def test_lbfgs(x64: None) -> None:
    """The direction is that of the dense matrix of the last two pairs."""
    A = np.diag(np.linspace(0.5, 3.0, 6)) + 0.1
    tx = optax.scale_by_lbfgs(memory_size=2)
    update = by_numpy(tx.update)
    x: Any = normal(9, 6)
    state, pairs, before = tx.init(x), [], None
    for _ in range(5):
        g = np.asarray(A @ np.asarray(x))
        if before is not None:
            pairs.append((np.asarray(x) - before[0], g - before[1]))
        H = np.eye(6)
        if pairs:
            s, y = pairs[-1]
            H = H * (s @ y) / (y @ y)
        for s, y in pairs[-2:]:
            V = np.eye(6) - np.outer(y, s) / (y @ s)
            H = V.T @ H @ V + np.outer(s, s) / (y @ s)
        u, state = update(jnp.asarray(g), state, x)
        if pairs:
            assert_equal(u, H @ g, rtol=1e-9)
        before = np.asarray(x), g
        x = x - 0.3 * jnp.asarray(u)


def test_adan_is_another_method(x64: None) -> None:
    """With the difference weighted by 1 - b2 it is optax's; the official code, and gk.adan, weight it by b2."""
    theirs, right = ours(optax.adan(0.1, eps_root=0.0)), ours(gk.adan(0.1, proximal=False))

    def run(weight: float) -> list[np.ndarray]:
        m, d, n, before, out = np.zeros(6), np.zeros(6), np.zeros(6), GRADIENTS[0], []
        for t, g in enumerate(GRADIENTS, 1):
            delta = g - before if t > 1 else np.zeros(6)
            m, d = 0.98 * m + 0.02 * g, 0.92 * d + 0.08 * delta
            n = 0.99 * n + 0.01 * (g + weight * delta) ** 2
            hat = m / (1 - 0.98**t) + weight * d / (1 - 0.92**t)
            out.append(-0.1 * hat / (np.sqrt(n / (1 - 0.99**t)) + 1e-8))
            before = g
        return out

    assert_equal(right, run(0.92), rtol=1e-10)
    assert max(np.abs(np.asarray(a) - b).max() for a, b in zip(theirs, run(0.92), strict=True)) > 0.05


def test_adopt_and_cocob_are_those_here(x64: None) -> None:
    assert_equal(ours(optax.contrib.adopt(0.1)), ours(gk.adopt(0.1)), rtol=1e-10)
    assert_equal(ours(optax.contrib.cocob()), ours(gk.cocob()), rtol=1e-10)


@pytest.mark.parametrize("name", SERVED)
def test_the_card_of_a_method_of_optax(name: str) -> None:
    """Its words are those of its state, and what is shown of it says what was compared and what was not."""
    card, served = methods.card_of(name), SERVED[name]
    method = methods.find(name)
    state = jax.eval_shape(method.make(0.1).init, {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)})
    words = sum(x.size for x in jax.tree.leaves(state)) / 64**2
    assert abs(words - card.words) < 0.02
    said = dict(facts(card))
    assert (said["name"], said["checked"], said["not checked"]) == (name, served.checked, served.unchecked)
    assert said["paper check"] == "tests/papers/test_served_by_optax.py"


def test_a_method_of_optax_is_found_by_its_name_and_by_its_paper() -> None:
    """Where this library has one of the same name, by that of optax alone."""
    for text in ("radam", "optax.radam", "1908.03265", "variance of the adaptive learning rate"):
        card = look_up(text)
        assert isinstance(card, Card) and card.public_name == "optax.radam"
    card = look_up("adan")
    assert isinstance(card, Card) and card.public_name == "gk.adan"


def test_a_method_of_optax_that_no_test_compares_says_so() -> None:
    said = dict(facts(methods.card_of("optax.noisy_sgd")))
    assert (said["name"], said["paper check"]) == ("optax.noisy_sgd", "none")
    assert said["checked"] == "nothing by a test of this library"
