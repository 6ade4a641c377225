"""AdAdaGrad: AdaGrad on batches that grow, out of a few allowed sizes (Lau, Liu, Kolar, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.batches import adadagrad, norm_test, norm_test_controller
from gradkit.gradients import GradientMoments, gradient_moments
from tests.papers.replay import assert_equal, normal, updates


def moments(square: float, variance: float, k: int) -> GradientMoments:
    """Of k parts whose mean has this squared norm, and whose sample variance is this."""
    mean = jnp.sqrt(jnp.asarray([square]))
    spread = square + variance * (k - 1) / k
    return GradientMoments(mean, jnp.asarray([spread]), jnp.asarray(spread), jnp.int32(k))


def jitted(allowed: list[int], **kwargs: int):
    controller = norm_test_controller(allowed, eta=0.5, **kwargs)
    return controller._replace(update=jax.jit(controller.update))


def test_the_smallest_allowed_size_that_is_enough() -> None:
    """With eta = 1/2 and |g| = 1 the test asks for 4 variances of a part in parts."""
    controller = jitted([2, 4, 8, 16], examples=32)
    for variance, want in ((0.0, 2), (0.4, 2), (0.6, 4), (0.9, 4), (1.1, 8), (3.9, 16), (50.0, 16)):
        state = controller.update(controller.init(), moments(1.0, variance, 2))
        assert int(state.microbatches) == want, variance
    # No gradient at all: as many as may be. None that is a number: as before.
    assert int(controller.update(controller.init(), moments(0.0, 1.0, 2)).microbatches) == 16
    assert int(controller.update(controller.init(), moments(np.nan, 1.0, 2)).microbatches) == 2


def test_replicas_share_the_parts() -> None:
    """4 replicas: 4 variances of a part are 1 variance per replica."""
    controller = jitted([1, 2, 4], examples=8, replicas=4)
    for variance, want in ((0.9, 1), (1.1, 2), (2.1, 4), (9.0, 4)):
        assert int(controller.update(controller.init(), moments(1.0, variance, 4)).microbatches) == want


def test_never_decreasing_and_only_where_tested() -> None:
    """In one scan: every third step decides, and what was decided stays."""
    controller = norm_test_controller([2, 4, 8], examples=4, eta=0.5, test_interval=3)
    variances = jnp.array([9.0, 9.0, 0.9, 9.0, 9.0, 0.0, 0.0, 0.0, 9.0])
    spread = 1 + variances / 2
    rows = GradientMoments(
        jnp.ones((9, 1)), spread[:, None], spread, jnp.full(9, 2, jnp.int32)
    )  # the parts of the first batch

    def step(state, now):
        state = controller.update(state, now)
        return state, state.microbatches

    last, sizes = jax.jit(lambda s: jax.lax.scan(step, s, rows))(controller.init())
    assert sizes.tolist() == [2, 2, 4, 4, 4, 4, 4, 4, 8]
    assert int(last.count) == 9 and last.microbatches.dtype == jnp.int32 and not last.microbatches.weak_type


def test_is_the_norm_test_of_the_examples(x64: None) -> None:
    """With microbatches of one example the number is that of the test on the examples themselves."""
    x, w = normal(0, 8, 3) + 1.0, jnp.zeros(3)
    _, found = gradient_moments(lambda w, x: jnp.mean(x @ w), 8)(w, x)
    asked = int(norm_test(x.mean(0), x.var(0, ddof=1), batch_size=8, eta=0.2))
    assert 8 < asked < 10**4
    allowed = [8, asked - 1, asked, asked + 1]
    controller = norm_test_controller(allowed, examples=1, eta=0.2)
    assert int(controller.update(controller.init(), found).microbatches) == asked


@pytest.mark.parametrize("norm", [False, True])
def test_the_optimizer_is_adagrad(norm: bool, x64: None) -> None:
    gradients = [{"a": normal(i, 3), "b": normal(i + 9, 2, 2)} for i in range(5)]
    recipe = adadagrad(0.3, norm=norm, initial_accumulator_value=0.04)
    got = updates(recipe.optimizer, gradients[0], gradients)
    sums = {k: np.full(g.shape, 0.04) for k, g in gradients[0].items()}
    for g, u in zip(gradients, got, strict=True):
        squares = {k: np.asarray(x) ** 2 for k, x in g.items()}
        total = sum(s.sum() for s in squares.values())
        sums = {k: s + (total if norm else squares[k]) for k, s in sums.items()}
        assert_equal(u, {k: -0.3 * np.asarray(x) / np.sqrt(sums[k]) for k, x in g.items()})


def test_batches_grow_as_the_gradient_vanishes() -> None:
    """A noisy quadratic from host code: every size compiles once, and the last is reached before the end."""
    recipe = adadagrad(5.0, allowed=[2, 4, 8, 16], examples=2, eta=0.5)
    noise = np.random.default_rng(0).standard_normal((60, 32, 4)).astype(np.float32)
    steps: dict[int, Any] = {}

    def make(k: int):
        source = gradient_moments(lambda x, b: 0.5 * jnp.mean(jnp.sum((x[None] - b) ** 2, axis=1)), k)

        def step(x, state, sizes, batch):
            _, found = source(x, batch)
            u, state = recipe.optimizer.update(found.mean, state, x)
            return x + u, state, recipe.update(sizes, found)

        return jax.jit(step)

    x = jnp.full(4, 20.0)
    state, sizes, seen = recipe.optimizer.init(x), recipe.init(), []
    for batch in noise:
        k = int(sizes.microbatches)
        seen.append(k)
        step = steps.setdefault(k, make(k))
        x, state, sizes = jax.block_until_ready(step(x, state, sizes, batch[: 2 * k]))
    assert seen[0] == 2 and seen[-1] == 16 and seen == sorted(seen) and set(seen) <= {2, 4, 8, 16}


def test_on_a_mesh() -> None:
    """Gradients cut over devices: the same answer."""
    mesh = gk.parallel.make_mesh("fsdp=8")
    controller = norm_test_controller([2, 4, 8, 16], examples=4, eta=0.5)
    g = jnp.asarray(np.random.default_rng(0).standard_normal((16, 4)), jnp.float32)
    k = jnp.int32(2)
    found = GradientMoments({"w": g}, {"w": 3 * g**2}, 1 + 1.1 * jnp.sum(g**2), k)
    put = lambda spec: {"w": NamedSharding(mesh, spec)}  # noqa: E731
    cut = found._replace(mean=jax.device_put(found.mean, put(P("fsdp"))))
    want = controller.update(controller.init(), found)
    got = jax.jit(controller.update)(jax.device_put(controller.init(), NamedSharding(mesh, P())), cut)
    assert int(want.microbatches) == int(got.microbatches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allowed": []}, "allowed must be"),
        ({"allowed": [4, 2]}, "allowed must be"),
        ({"allowed": [2, 2]}, "allowed must be"),
        ({"allowed": [1, 2]}, "two microbatches or more"),
        ({"allowed": [2.0]}, "allowed must be an integer"),
        ({"examples": 0}, "examples must be"),
        ({"replicas": 0}, "replicas must be"),
        ({"eta": 0.0}, "eta must be in"),
        ({"test_interval": 0}, "test_interval must be"),
        ({"initial_accumulator_value": -1.0}, "initial_accumulator_value must be"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"norm": 1}, "norm must be"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adadagrad(**{"learning_rate": 0.1, **changes})
