"""Muon (Jordan et al., 2024), and what optax's muon does differently."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon as optax_muon

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.papers.replay import assert_equal, normal, updates

A, B, C = 3.4445, -4.7750, 2.0315


def newton_schulz(u: np.ndarray, steps: int = 5) -> np.ndarray:
    """Five lines of NumPy."""
    x = u / (np.linalg.norm(u) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def directions(tx: optax.GradientTransformation, gradients: list[Any]) -> list[Any]:
    return updates(tx, gradients[0], gradients)


def test_the_algorithm(x64: None) -> None:
    gradients = [normal(i, 4, 6) for i in range(4)]
    for nesterov in (True, False):
        m, want = np.zeros((4, 6)), []
        for g in map(np.asarray, gradients):
            m = 0.9 * m + 0.1 * g
            want.append(math.sqrt(6 / 4) * newton_schulz(0.1 * g + 0.9 * m if nesterov else m))
        got = directions(gk.scale_by_muon(momentum=0.9, nesterov=nesterov), gradients)
        assert_equal(got, want, rtol=1e-10)


def test_sum_and_mean_are_one_direction(x64: None) -> None:
    """M = momentum M + g, u = g + momentum M (Moonlight, Dion) is 1 / (1 - momentum) times u."""
    gradients, M, want = [normal(i, 4, 6) for i in range(4)], np.zeros((4, 6)), []
    for g in map(np.asarray, gradients):
        M = 0.95 * M + g
        want.append(newton_schulz(g + 0.95 * M))
    # eps = 1e-7 against a norm of 0.1 at least, times the slope 3.4^5 at most.
    assert_equal(directions(gk.scale_by_muon(scale=None), gradients), want, rtol=1e-3, atol=1e-3)


def test_singular_vectors_are_those_of_the_momentum(x64: None) -> None:
    u = np.asarray(normal(0, 5, 8))
    U, s, Vt = np.linalg.svd(u, full_matrices=False)
    got = np.asarray(directions(gk.scale_by_muon(scale=None), [jnp.asarray(u)])[0])
    core = U.T @ got @ Vt.T
    values = np.diag(core)
    np.testing.assert_allclose(core, np.diag(values), atol=1e-12)
    assert (s / np.linalg.norm(s)).min() > 0.01
    assert values.min() > 0.68 and values.max() < 1.135  # [0.68, 1.13] to two digits
    exact = directions(gk.scale_by_muon(scale=None, method="svd"), [jnp.asarray(u)])[0]
    np.testing.assert_allclose(exact, U @ Vt, atol=1e-12)


def test_transpose_scale_and_padding(x64: None) -> None:
    tx = gk.scale_by_muon(scale=None, eps=0.0)
    g = normal(0, 4, 7)
    want = directions(tx, [g])[0]
    assert_equal(directions(tx, [g.T])[0].T, want)
    assert_equal(directions(tx, [1e6 * g])[0], want, rtol=1e-11)
    padded = jnp.zeros((6, 9)).at[1:5, :7].set(g)
    got = directions(tx, [padded])[0]
    assert_equal(got[1:5, :7], want)
    assert not np.any(got.at[1:5, :7].set(0))


@pytest.mark.parametrize(
    ("scale", "want"),
    [
        ("spectral", lambda i, o: math.sqrt(max(1, o / i))),
        ("ratio", lambda i, o: math.sqrt(o / i)),
        ("match_rms_adamw", lambda i, o: 0.2 * math.sqrt(max(i, o))),
    ],
)
def test_scales(scale: str, want: Any, x64: None) -> None:
    """Also of a convolution, whose inputs are flattened, and of fused weights, each with a scale of its own."""
    tree = {"wide": normal(0, 4, 9), "tall": normal(1, 9, 4), "conv": {"kernel": normal(2, 2, 2, 3, 16)}}
    tree |= {"qkv": normal(3, 4, 16)}
    fused = layout((by_path("qkv"), {"splits": (8, 4, 4)}))
    scaled, plain = (directions(gk.scale_by_muon(scale=s, layout=fused), [tree])[0] for s in (scale, None))
    assert_equal(scaled["wide"], want(4, 9) * plain["wide"])
    assert_equal(scaled["tall"], want(9, 4) * plain["tall"])
    assert_equal(scaled["conv"]["kernel"], want(12, 16) * plain["conv"]["kernel"])
    flat = directions(gk.scale_by_muon(scale=None), [tree["conv"]["kernel"].reshape(12, 16)])[0]
    assert_equal(plain["conv"]["kernel"].reshape(12, 16), flat)
    parts = {str(i): part for i, part in enumerate(jnp.split(tree["qkv"], [8, 12], axis=1))}
    apart = directions(gk.scale_by_muon(scale=scale), [parts])[0]
    assert_equal(scaled["qkv"], jnp.concatenate(list(apart.values()), axis=1))
    # RMS of an orthogonal n x m matrix is 1 / sqrt(max(n, m)): with Moonlight's scale it is 0.2.
    if scale == "match_rms_adamw":
        exact = directions(gk.scale_by_muon(scale=scale, method="svd"), [tree])[0]
        for leaf in (exact["wide"], exact["tall"], exact["conv"]["kernel"]):
            assert_equal(jnp.sqrt(jnp.mean(leaf**2)), 0.2)


def test_heads_are_matrices_of_their_own(x64: None) -> None:
    """(inputs, heads, features): outputs on two axes, split by heads, also where the axes stand in another order."""
    x = normal(0, 6, 3, 4)
    heads = layout((by_path("query/kernel"), {"splits": (4, 4, 4)}))
    got = directions(gk.scale_by_muon(layout=heads), [{"query": {"kernel": x}}])[0]["query"]["kernel"]
    alone = [directions(gk.scale_by_muon(), [x[:, i]])[0] for i in range(3)]
    assert_equal(got, jnp.stack(alone, axis=1))
    turned = layout((by_path("w"), {"inputs": (2,), "outputs": (1, 0), "splits": (8, 4)}))
    y = jnp.transpose(x, (2, 1, 0))  # outputs (heads, features) on axes 1, 0
    got = directions(gk.scale_by_muon(layout=turned), [{"w": y}])[0]["w"]
    flat = x.reshape(6, 12)
    want = [directions(gk.scale_by_muon(), [part])[0] for part in (flat[:, :8], flat[:, 8:])]
    assert_equal(jnp.transpose(got, (2, 1, 0)).reshape(6, 12), jnp.concatenate(want, axis=1))


def test_weight_decay_is_decoupled(x64: None) -> None:
    x = {"kernel": normal(0, 3, 4), "bias": normal(1, 4)}
    zero = jax.tree.map(jnp.zeros_like, x)
    got = updates(gk.muon(0.1, adam_learning_rate=0.1, weight_decay=0.5, adam_weight_decay=0.25), x, [zero])[0]
    assert_equal(got, {"kernel": -0.05 * x["kernel"], "bias": -0.025 * x["bias"]})


def test_momentum_may_be_narrow() -> None:
    g = normal(0, 4, 8)
    tx = gk.scale_by_muon(mu_dtype=jnp.bfloat16)
    state = tx.init(g)
    assert state.mu.dtype == jnp.bfloat16 and state.count is None
    got, state = tx.update(g, state)
    assert got.dtype == jnp.float32 and state.mu.dtype == jnp.bfloat16


def test_what_is_no_matrix_is_named() -> None:
    with pytest.raises(ValueError, match=r"scale_by_muon: the leaf 'bias' of shape \(4,\) is no matrix"):
        gk.scale_by_muon().init({"bias": jnp.ones(4), "kernel": jnp.ones((4, 4))})
    with pytest.raises(ValueError, match="need precondition='aol'"):
        gk.muon(0.1, adam_learning_rate=0.1, coefficients="aol")
    with pytest.raises(ValueError, match="did you mean 'spectral'"):
        gk.muon(0.1, adam_learning_rate=0.1, scale="spectrl")


def test_who_gets_what() -> None:
    params = {
        "Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "Conv_0": {"kernel": jnp.ones((2, 2, 3, 4))},
        "embed": {"embedding": jnp.ones((9, 4))},
        "lm_head": {"kernel": jnp.ones((4, 9))},
        "VmapExpert_0": {"kernel": jnp.ones((2, 4, 4))},
        "temperature": jnp.ones(()),
    }
    got = {row.name: row.method for row in gk.leaves.describe(gk.muon(0.1, adam_learning_rate=0.1), params).rows}
    adamw = {"Dense_0/bias", "embed/embedding", "lm_head/kernel", "temperature"}
    assert {name for name, method in got.items() if method == "adamw"} == adamw
    assert {name for name, method in got.items() if method == "muon"} == got.keys() - adamw


def test_muons_rate_is_not_handed_on_to_other_leaves() -> None:
    """Ten times and more what AdamW takes: who has such leaves decides, by a rate or by a scale that serves both."""
    kernel, bias = {"kernel": jnp.ones((3, 4))}, {"bias": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"muon: 'bias' is no matrix .* give adam_learning_rate .*, or scale="):
        gk.muon(0.02).init({**kernel, **bias})
    gk.muon(0.02).init(kernel)

    def rates(**how: Any) -> dict[str, Any]:
        rows = gk.leaves.describe(gk.muon(0.02, **how), {**kernel, **bias}).rows
        return {row.name: float(row.rate) for row in rows}

    assert rates(adam_learning_rate=3e-4) == {"kernel": 0.02, "bias": 3e-4}
    assert rates(scale="match_rms_adamw") == {"kernel": 0.02, "bias": 0.02}


# What optax 0.2.8 does differently, one by one.


def optax_updates(tx: optax.GradientTransformation, x: Any, gradients: list[Any]) -> list[Any]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return updates(tx, x, gradients)


def test_optax_a_bias_correction(x64: None) -> None:
    """Its two corrections turn the direction; ours does on request, and to the same."""
    gradients = [normal(i, 4, 6) for i in range(5)]
    theirs = optax_updates(optax_muon(1.0, eps=1e-8), gradients[0], gradients)
    same = updates(gk.muon(1.0, adam_learning_rate=1.0, eps=1e-8, bias_correction="optax"), gradients[0], gradients)
    # optax's coefficients are float32.
    assert_equal(same, theirs, rtol=1e-4, atol=1e-5)
    plain = updates(gk.muon(1.0, adam_learning_rate=1.0), gradients[0], gradients)
    true = updates(gk.muon(1.0, adam_learning_rate=1.0, bias_correction=True), gradients[0], gradients)
    assert_equal(plain, true, rtol=1e-3, atol=1e-3)  # up to eps
    assert max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in zip(theirs, plain, strict=True)) > 0.05


def test_optax_b_other_leaves(x64: None) -> None:
    """AdamW with an eps of its own, not Nesterov's Adam with Muon's."""
    x = normal(0, 4)
    gradients = [normal(i, 4) for i in range(1, 4)]
    ours = updates(gk.muon(0.1, adam_learning_rate=0.1), x, gradients)
    assert_equal(ours, updates(gk.adamw(0.1, b2=0.95, eps=1e-10, weight_decay=0.0), x, gradients))
    other = updates(gk.muon(0.1, adam_learning_rate=0.1, eps=0.5, nesterov=False), x, gradients)
    assert_equal(ours, other)
    theirs = optax_updates(optax_muon(0.1, adam_b2=0.95), x, gradients)
    assert float(jnp.abs(theirs[0] - ours[0]).max()) > 1e-2


def test_optax_c_lists_of_coefficients(x64: None) -> None:
    """Eight entries for five steps, and three for five, are lists like any other."""
    g = normal(0, 4, 6)
    entries = [(A - 0.1 * i, B, C) for i in range(8)]
    with pytest.raises(ValueError, match="Not enough coeffs"):
        optax_updates(optax_muon(1.0, ns_coeffs=tuple(entries), ns_steps=5), g, [g])
    first = directions(gk.scale_by_muon(coefficients=entries), [g])
    assert_equal(first, directions(gk.scale_by_muon(coefficients=entries[:5]), [g]))
    repeated = directions(gk.scale_by_muon(coefficients=entries[:3]), [g])
    assert_equal(repeated, directions(gk.scale_by_muon(coefficients=[*entries[:3], entries[2], entries[2]]), [g]))


def test_optax_d_the_preset(x64: None) -> None:
    g = normal(0, 4, 6)
    named = directions(gk.scale_by_muon(coefficients="muon"), [g])
    assert_equal(named, directions(gk.scale_by_muon(coefficients=(A, B, C)), [g]))
    assert_equal(named, directions(gk.scale_by_muon(), [g]))
    with pytest.raises(ValueError):
        optax_updates(optax_muon(1.0, ns_coeffs="muon"), g, [g])


def test_optax_e_stacks(x64: None) -> None:
    """Three axes are a stack of matrices, not a case for Adam."""
    g = {"ScanBlock_0": {"kernel": normal(0, 3, 4, 6)}}
    got = updates(gk.muon(0.1, adam_learning_rate=0.1), g, [g])[0]["ScanBlock_0"]["kernel"]
    for i in range(3):
        assert_equal(
            got[i],
            updates(
                gk.muon(0.1, adam_learning_rate=0.1), g["ScanBlock_0"]["kernel"][i], [g["ScanBlock_0"]["kernel"][i]]
            )[0],
        )
    theirs = optax_updates(optax_muon(0.1), g, [g])[0]["ScanBlock_0"]["kernel"]
    # Adam with Nesterov's look-ahead: the sign of the gradient, times b / (1 + b) + 1 with b = 0.9.
    assert_equal(jnp.abs(theirs), (0.9 / 1.9 + 1) * 0.1 * jnp.ones_like(theirs), rtol=1e-4)


def test_optax_f_one_program_per_shape() -> None:
    """Eight more layers add no product: five steps in the Gram form, of which the second is followed by a restart."""

    def products(layers: int) -> int:
        tree = {f"{i}/{name}": jnp.ones(s) for i in range(layers) for name, s in (("up", (4, 8)), ("down", (8, 4)))}
        tx = gk.muon(0.1, adam_learning_rate=0.1)
        return jax.jit(tx.update).lower(tree, tx.init(tree), tree).as_text().count("dot_general")

    assert products(2) == products(10) == 18
