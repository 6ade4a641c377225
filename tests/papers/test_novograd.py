"""NovoGrad (Ginsburg et al., 2019)."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_trajectory_does_not_depend_on_the_scale_of_the_loss_of_a_layer(x64: None) -> None:
    x = {"a": normal(0, 3, 4), "b": normal(1, 4)}
    gradients = [{"a": normal(i, 3, 4), "b": normal(i + 9, 4)} for i in range(5)]
    scaled = [{"a": 1e3 * g["a"], "b": 1e-3 * g["b"]} for g in gradients]
    tx = gk.novograd(0.1, eps=0.0, weight_decay=0.1)
    assert_equal(updates(tx, x, gradients), updates(tx, x, scaled))


def test_without_memory_of_the_norm_directions_have_norm_one(x64: None) -> None:
    gradients = [normal(i, 3, 4) for i in range(4)]
    for u in updates(gk.scale_by_novograd(b1=0.0, b2=0.0, eps=0.0), gradients[0], gradients):
        assert_equal(jnp.linalg.norm(u), 1.0)


def test_equals_optax(x64: None) -> None:
    x, gradients = normal(9, 3, 4), [normal(i, 3, 4) for i in range(5)]
    kwargs = {"b1": 0.9, "b2": 0.7, "eps": 1e-6, "weight_decay": 0.1}
    assert_equal(
        updates(gk.novograd(0.1, **kwargs), x, gradients), updates(optax.novograd(0.1, **kwargs), x, gradients)
    )


def test_zero_first_gradient_gives_the_decay_alone(x64: None) -> None:
    x = normal(0, 3, 4)
    assert_equal(updates(gk.scale_by_novograd(weight_decay=0.1), x, [0 * x])[0], 0.1 * x)


def test_grad_averaging_leaves_out_the_first_step(x64: None) -> None:
    g = normal(0, 3, 4)
    unit = g / jnp.linalg.norm(g)
    first, second = updates(gk.scale_by_novograd(b1=0.9, eps=0.0, grad_averaging=True), g, [g, g])
    assert_equal(first, unit)
    assert_equal(second, (0.9 + 0.1) * unit)


def test_amsgrad_remembers_the_largest_norm(x64: None) -> None:
    g = normal(0, 3, 4)
    big, small = 10 * g, 1e-3 * g
    plain, ams = (
        updates(gk.scale_by_novograd(b1=0.0, b2=0.0, eps=0.0, amsgrad=a), g, [big, small])[1] for a in (False, True)
    )
    assert_equal(jnp.linalg.norm(plain), 1.0)
    assert_equal(ams, small / jnp.linalg.norm(big))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_are_kept_wide(dtype: object) -> None:
    state = gk.scale_by_novograd().init({"w": jnp.ones((2, 3), dtype)})
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state.nu) == {"w": ((1, 1), jnp.float32)}
