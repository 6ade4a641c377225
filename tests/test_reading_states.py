"""`gk.find`, `gk.diagnostics.metrics` and `state_table` on chains, groups, wrappers and optax's own states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.by_numpy import by_numpy

PARAMS = {"bias": np.ones(3, np.float32), "kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}
metrics = gk.diagnostics.metrics


def after(tx: Any) -> Any:
    """The state after one step with the parameters as gradients."""
    with jax.numpy_dtype_promotion("standard"):  # which optax counts on
        return by_numpy(tx.update)(PARAMS, by_numpy(tx.init)(PARAMS), PARAMS)[1]


def test_metrics_have_the_names_of_their_groups() -> None:
    got = metrics(after(gk.muon(0.02, adam_learning_rate=0.003)))
    rates = {name: float(value) for name, value in got.items() if name.endswith("learning_rate")}
    np.testing.assert_allclose(sorted(rates.values()), [0.003, 0.02], rtol=1e-6)
    assert sorted(rates, key=rates.__getitem__) == ["adamw/learning_rate", "muon/learning_rate"]
    tx = gk.leaves.groups([(gk.leaves.by_path("bias"), gk.sgd(0.5))], default=gk.sgd(0.25))
    got = metrics(after(tx))
    assert sorted(map(float, got.values())) == [0.25, 0.5]
    (of_bias,) = (name for name, value in got.items() if value == 0.5)
    assert "bias" in of_bias and of_bias.endswith("/learning_rate")
    got = metrics(after(optax.named_chain(("first", gk.sgd(0.5)), ("second", gk.sgd(0.25)))))
    assert {k: float(v) for k, v in got.items()} == {"first/learning_rate": 0.5, "second/learning_rate": 0.25}


def test_metrics_of_links_with_one_name() -> None:
    """The parameters have the norm (3 + 55)^(1/2); clipped to 2, then to 1."""
    clips = (gk.clip_by_global_norm(2.0), gk.clip_by_global_norm(1.0))
    got = {k: float(v) for k, v in metrics(after(optax.chain(*clips, gk.sgd(0.1)))).items()}
    first, second = "clip_by_global_norm/gradient_norm", "clip_by_global_norm_1/gradient_norm"
    np.testing.assert_allclose([got[first], got[second], got["learning_rate"]], [58**0.5, 2.0, 0.1], rtol=1e-6)
    assert "gradient_norm" not in got


def test_norms_on_demand() -> None:
    got = metrics((), updates=PARAMS, params={"a": np.full(4, 3.0, np.float32)})
    np.testing.assert_allclose([got["update_norm"], got["param_norm"]], [58**0.5, 6.0], rtol=1e-6)
    step = gk.training.make_train_step(lambda x, batch: jnp.sum(x * batch), gk.sgd(0.5), norms=True)
    state, got = step(step.init(jnp.zeros(2)), jnp.asarray([3.0, 4.0]))
    np.testing.assert_allclose([got["update_norm"], got["param_norm"]], [2.5, 2.5], rtol=1e-6)
    np.testing.assert_allclose(state.params, [-1.5, -2.0])
    step = gk.training.make_train_step(lambda x, batch: jnp.sum(x * batch), gk.sgd(0.5))
    assert "update_norm" not in step(step.init(jnp.zeros(2)), jnp.ones(2))[1]


CHAINS: dict[str, Any] = {
    "plain": gk.adam(0.1),
    "optax": optax.adam(0.1),
    "behind another": optax.chain(gk.clip_by_global_norm(1.0), gk.adam(0.1)),
    "injected": optax.inject_hyperparams(gk.adam)(learning_rate=0.1),
    "masked": optax.masked(gk.adam(0.1), {"bias": False, "kernel": True}),
    "group": gk.leaves.groups([(gk.leaves.by_path("bias"), gk.sgd(0.1))], default=gk.adam(0.1)),
    "accumulated": optax.MultiSteps(gk.adam(0.1), 1).gradient_transformation(),
    "guarded": gk.guard(gk.adam(0.1)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_find(name: str) -> None:
    """The same path finds the same moment, wherever Adam stands: a tenth of the gradient, which may be clipped."""
    state = after(CHAINS[name])
    got = np.asarray(gk.find(state, "adam/mu/kernel"))
    want = 0.1 * PARAMS["kernel"] / (58**0.5 if name == "behind another" else 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert got is not None and gk.find(state, "scale_by_adam/mu")["kernel"].shape == (2, 3)
    assert float(gk.find(state, "scale_by_adam/count")) == 1


def test_find_says_what_there_is() -> None:
    state = after(gk.muon(0.02, adam_learning_rate=0.003))
    assert gk.find(state, "adamw/mu")["bias"].shape == (3,)
    with pytest.raises(
        ValueError, match=r"'mu' fits 2 parts of the state: .*adamw.*scale_by_adam/mu.*muon.*/mu; write more"
    ):
        gk.find(state, "mu")
    with pytest.raises(ValueError, match=r"'lion/mu'; nearest: .*scale_by_adam/mu"):
        gk.find(state, "lion/mu")
    with pytest.raises(ValueError, match=r"nearest: .*scale_by_adam/nu"):
        gk.find(state, "adam/nv")
    for path in ("", "/", 3):
        with pytest.raises(ValueError, match="path must be names"):
            gk.find(state, path)  # pyright: ignore[reportArgumentType]


def test_a_state_is_printed_without_its_arrays() -> None:
    text = gk.diagnostics.state_table(after(gk.muon(0.02, adam_learning_rate=0.003)))
    (line,) = (line for line in text.splitlines() if line.split()[0] == "nu")
    assert line.split("  ")[-1].strip() == "1 array, float32, 12 bytes"
    assert len(text.splitlines()) < 40 and max(map(len, text.splitlines())) <= 120
    shapes = jax.eval_shape(gk.soap(0.1).init, PARAMS)
    assert "scale_by_soap" in gk.diagnostics.state_table(shapes)
