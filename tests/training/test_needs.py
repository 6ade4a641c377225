"""What a chain must be told is read from the chain itself, whatever its links are wrapped in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.training.one_step import needs_of
from gradkit.training.run import start, step_function
from gradkit.workloads import load

PARAMS = {"kernel": jax.ShapeDtypeStruct((6, 4), np.float32)}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda tx: tx,
        lambda tx: optax.chain(gk.clip_by_global_norm(1.0), tx),
        lambda tx: optax.named_chain(("method", tx)),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: gk.leaves.groups([(gk.leaves.everything(), tx)]),
        lambda tx: gk.precision(tx, master=True),
    ],
    ids=["bare", "chain", "named_chain", "masked", "MultiSteps", "groups", "precision"],
)
def test_needs_survive_every_wrapper(wrapped: object) -> None:
    assert needs_of(wrapped(gk.vr_adam(0.1)), PARAMS) == ("grad_moments",)  # pyright: ignore[reportCallIssue]


def test_asking_twice_gives_the_same_answer() -> None:
    tx = optax.chain(gk.clip_by_global_norm(1.0), gk.vr_adam(0.1))
    assert needs_of(tx, PARAMS) == needs_of(tx, PARAMS) == ("grad_moments",)


def test_a_chain_needs_what_its_links_need_and_an_optimizer_answers_for_its_own() -> None:
    tx = optax.chain(gk.vr_adam(0.1), gk.scale_by_sophia())
    assert set(needs_of(tx, PARAMS)) == {"grad_moments", "curvature"}
    assert needs_of(gk.sophia(0.1, estimator="hutchinson"), PARAMS) == gk.catalogue.find("sophia").needs
    assert needs_of(optax.adam(0.1), PARAMS) == ()


def test_a_method_that_measures_works_in_a_chain() -> None:
    """A step of clip and VR-Adam is made, and moves the parameters."""
    workload = load("digits_mlp")
    step = step_function(workload, optax.chain(gk.clip_by_global_norm(1.0), gk.vr_adam(0.1)))
    tx = optax.chain(gk.clip_by_global_norm(1.0), gk.vr_adam(0.1))
    first = start(workload.init(jax.random.key(0)), tx, jnp.uint32(0))
    after, _ = jax.jit(step)(first)
    assert all(
        np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (after.params, first.params)), strict=True)
    )
