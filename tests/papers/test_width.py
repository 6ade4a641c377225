"""Maximal update parametrization (Yang et al., 2022) and the spectral condition (Yang, Simon, Bernstein, 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal

INPUTS, OUTPUTS, EXAMPLES = 6, 3, 16


def shapes(d: int) -> Any:
    return {
        "embed": {"kernel": (INPUTS, d), "bias": (d,)},
        "hidden": {"kernel": (d, d), "bias": (d,)},
        "head": {"kernel": (d, OUTPUTS), "bias": (OUTPUTS,)},
    }


def drawn(d: int, seed: int = 0) -> Any:
    """Kernels from N(0, 1 / inputs), biases 0."""
    return {
        layer: {"kernel": normal(seed + i, *own["kernel"]) / own["kernel"][0] ** 0.5, "bias": jnp.zeros(own["bias"])}
        for i, (layer, own) in enumerate(shapes(d).items())
    }


def forward(x: Any, data: Any, output: float) -> tuple[Any, Any]:
    """The hidden activations, and the outputs."""
    h = jnp.tanh(data @ x["embed"]["kernel"] + x["embed"]["bias"][None])
    h = jnp.tanh(h @ x["hidden"]["kernel"] + x["hidden"]["bias"][None])
    return h, (output * h) @ x["head"]["kernel"] + x["head"]["bias"][None]


def trained(x: Any, rates: Any, output: float, steps: int, learning_rate: float = 0.02) -> tuple[Any, Any]:
    """Hidden activations and outputs after some steps of Adam without eps, computed by NumPy."""
    data, targets = normal(7, EXAMPLES, INPUTS), normal(8, EXAMPLES, OUTPUTS)
    tx = gk.scale_by_width(gk.adam(learning_rate, eps=0.0), rates)

    def loss(x: Any, output: Any) -> Any:
        return jnp.mean((forward(x, data, output)[1] - targets) ** 2)

    def run(x: Any, output: Any) -> tuple[Any, Any]:
        state = tx.init(x)
        for _ in range(steps):
            updates, state = tx.update(jax.grad(loss)(x, output), state, x)
            x = optax.apply_updates(x, updates)
        return forward(x, data, output)

    return by_numpy(run)(x, jnp.asarray(output))


def ones(tree: Any) -> Any:
    return jax.tree.map(lambda _: gk.Multipliers(), tree)


def test_the_base_itself_has_multipliers_of_one() -> None:
    for optimizer in ("adam", "sgd", "spectral"):
        for form in ("readout", "init"):
            for init in ("fan_in", "constant"):
                m = gk.mup_multipliers(shapes(8), shapes(8), optimizer=optimizer, form=form, init=init)
                found = jax.tree.leaves(m, is_leaf=lambda node: isinstance(node, gk.Multipliers))
                assert set(found) == {gk.Multipliers()}


def test_the_change_of_activations_does_not_depend_on_the_width(x64: None) -> None:
    """Five steps of Adam: the mean change of hidden activations is flat over widths with the multipliers, and grows
    without them. Slopes are least squares in logarithms; four networks of each width."""
    widths = (16, 32, 64, 128)

    def change(d: int, m: Any, seed: int) -> float:
        output = m["head"]["kernel"].output
        x = gk.mup_init(drawn(d, seed), m)
        before, _ = forward(x, normal(7, EXAMPLES, INPUTS), output)
        after, _ = trained(x, m, output, 5)
        return float(np.abs(np.asarray(after) - np.asarray(before)).mean())

    slopes = []
    for m in (lambda d: gk.mup_multipliers(shapes(16), shapes(d)), lambda d: ones(drawn(d))):
        changes = [np.mean([change(d, m(d), 10 * seed) for seed in range(4)]) for d in widths]
        slopes.append(np.polyfit(np.log(widths), np.log(changes), 1)[0])
    assert abs(slopes[0]) < 0.1 < 0.2 < slopes[1]


def test_both_forms_of_the_head_are_the_same_function(x64: None) -> None:
    """Under Adam without eps, which does not feel that gradients of one head are m_in times smaller: the outputs after
    three steps agree. Head and rates differ by the factor 4, which is exact."""
    d = 32
    results = []
    for form in ("readout", "init"):
        m = gk.mup_multipliers(shapes(8), shapes(d), form=form)
        output = m["head"]["kernel"].output
        assert output == (0.25 if form == "readout" else 1.0)
        results.append(trained(gk.mup_init(drawn(d), m), m, output, 3))
    assert_equal(*results, rtol=1e-9)


def test_the_table() -> None:
    """Widths that grow by other factors on both sides, and initial values from a constant standard deviation."""
    base = {"up": {"kernel": (4, 8)}, "head": {"kernel": (8, 3)}}
    wide = {"up": {"kernel": (8, 32)}, "head": {"kernel": (32, 3)}}
    want = {
        ("adam", "readout"): ((1 / 2, 2.0, 2**-0.5, 1.0), (1.0, 1.0, 1.0, 1 / 4)),
        ("adam", "init"): ((1 / 2, 2.0, 2**-0.5, 1.0), (1 / 4, 4.0, 1 / 4, 1.0)),
        ("sgd", "readout"): ((2.0, 1 / 2, 2**-0.5, 1.0), (4.0, 1 / 4, 1.0, 1 / 4)),
        ("sgd", "init"): ((2.0, 1 / 2, 2**-0.5, 1.0), (1 / 4, 4.0, 1 / 4, 1.0)),
        ("spectral", "init"): ((2**0.5, 2**-0.5, 2**-0.5, 1.0), (1 / 2, 2.0, 1 / 4, 1.0)),
    }
    for (optimizer, form), rows in want.items():
        m = gk.mup_multipliers(base, wide, optimizer=optimizer, form=form, init="constant")
        np.testing.assert_allclose((m["up"]["kernel"], m["head"]["kernel"]), rows, rtol=1e-15)
    m = gk.mup_multipliers(base, wide, decoupled_decay=True)
    assert (m["up"]["kernel"].rate, m["up"]["kernel"].decay) == (0.5, 1.0)


def test_an_orthogonalized_update_keeps_the_spectral_condition(x64: None) -> None:
    """The spectral norm of the step over sqrt(outputs / inputs) is that of the base, at every shape."""
    base, sizes = {"w": {"kernel": (4, 8)}}, []
    for shape in ((4, 8), (8, 8), (16, 64), (4, 32)):
        m = gk.mup_multipliers(base, {"w": {"kernel": shape}}, optimizer="spectral", form="init")
        x = {"w": {"kernel": normal(0, *shape)}}
        tx = gk.scale_by_width(gk.scale_by_muon(method="svd", scale=None), m)
        u = np.asarray(tx.update(x, tx.init(x), x)[0]["w"]["kernel"])
        sizes.append(np.linalg.norm(u, 2) / np.sqrt(shape[1] / shape[0]))
    # The singular values of an orthogonal factor are 1 up to eps.
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-6)


def test_the_axis_of_a_stack_is_no_width() -> None:
    layers = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": 1}), default=ARRAYS)
    m = gk.mup_multipliers({"w": (2, 8, 8)}, {"w": (12, 8, 8)}, layout=layers)
    assert m == {"w": gk.Multipliers()}
    assert gk.mup_multipliers({"w": (2, 8, 8)}, {"w": (12, 32, 32)}, layout=layers)["w"].rate == 1 / 4


def test_around_an_optimizer_and_in_a_chain_it_is_the_same_decay(x64: None) -> None:
    """Coupled to the rate, rate times decay is 1: x shrinks by learning_rate weight_decay at every width."""
    d = 16
    x, g = drawn(d), drawn(d, 3)
    m = gk.mup_multipliers(shapes(8), shapes(d))
    links = gk.add_decayed_weights(0.3), gk.scale_by_learning_rate(0.1)
    whole = gk.scale_by_width(gk.adamw(0.1, weight_decay=0.3), m)
    chain = optax.chain(gk.scale_by_width(gk.scale_by_adam(), m), *links)
    (a, _), (b, _) = (tx.update(g, tx.init(x), x) for tx in (whole, chain))
    assert_equal(a, b)
    plain = gk.adamw(0.1, weight_decay=0.0)
    alone, _ = plain.update(g, plain.init(x), x)
    want = alone["hidden"]["kernel"] / 2 - 0.1 * 0.3 * x["hidden"]["kernel"]
    assert_equal(a["hidden"]["kernel"], want)


def test_without_decay_what_looks_at_all_leaves_still_does(x64: None) -> None:
    """The global norm is that of the tree, and not of the leaves with the same multipliers."""
    d = 16
    x, m = drawn(d), gk.mup_multipliers(shapes(8), shapes(d))
    tx = gk.scale_by_width(gk.clip_by_global_norm(1.0), m)
    got, _ = tx.update(x, tx.init(x), x)
    size = jnp.sqrt(sum(jnp.sum(v**2) for v in jax.tree.leaves(x)))
    assert_equal(got["hidden"]["kernel"], x["hidden"]["kernel"] / size / 2)


def test_describe_shows_the_rates() -> None:
    d = 16
    m = gk.mup_multipliers(shapes(8), shapes(d))
    rows = {
        row.name: row
        for row in gk.leaves.describe(gk.scale_by_width(gk.adamw(0.1, weight_decay=0.3), m), drawn(d)).rows
    }
    assert (rows["hidden/kernel"].rate, rows["hidden/kernel"].decay) == ("0.5 * 0.1", "0.6")
    assert (rows["embed/kernel"].rate, rows["embed/kernel"].decay) == ("0.1", "0.3")


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"base_shapes must have every leaf of shapes, and has no 'b'"):
        gk.mup_multipliers({"a": (2,)}, {"a": (4,), "b": (4,)})
    with pytest.raises(ValueError, match="base_shapes must have leaves of as many axes as shapes: 'a'"):
        gk.mup_multipliers({"a": (2,)}, {"a": (4, 2)})
    with pytest.raises(ValueError, match=r"the axis 0 of 'a', from 2 to 4, is none of these"):
        gk.mup_multipliers({"a": (2, 3, 3)}, {"a": (4, 3, 3)}, layout=ARRAYS)
    with pytest.raises(ValueError, match="base_shapes must be a tree of shapes"):
        gk.mup_multipliers({"a": "wide"}, {"a": (4,)})
    m = gk.mup_multipliers(shapes(8), shapes(16))
    with pytest.raises(ValueError, match="of whose weight decay nothing is known"):
        gk.scale_by_width(optax.adamw(0.1), m).init(drawn(16))
    with pytest.raises(ValueError, match="have no 'other' in mup_init"):
        gk.mup_init({"other": jnp.ones(2)}, m)
    with pytest.raises(ValueError, match=r"multipliers must be a tree of gk\.Multipliers"):
        gk.scale_by_width(gk.adam(0.1), {"a": 0.5}).init({"a": jnp.ones(2)})
