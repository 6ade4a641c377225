"""Hutchinson's estimate: exact on diagonal Hessians, unbiased on others, probes that follow names, averages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.engine.hutchinson import probe
from gradkit.parallel import declare_specs
from tests.golden import fixture
from tests.golden.fixture import Golden
from tests.papers.replay import assert_equal, normal

hutchinson_diag = gk.gradients.hutchinson_diag


def quadratic(H: jax.Array) -> Any:
    return lambda x: x @ H @ x / 2


def test_a_separable_loss_gives_its_diagonal(key: jax.Array, x64: None) -> None:
    """The loss of the golden trajectories, whose curvature has a closed form: exact for every draw of signs."""
    golden = Golden({"seed": 7, "leaves": [*fixture.SHAPES]}, [], {})
    x = {leaf: jnp.asarray(value) for leaf, value in fixture.params(golden).items()}
    a = {leaf: 0.5 + np.abs(value) for leaf, value in fixture._draw(7, "curv", 3).items()}
    want = {leaf: a[leaf] + 1.2 * (x[leaf] - value) ** 2 for leaf, value in fixture._draw(7, "centre").items()}
    estimate = jax.jit(lambda key: hutchinson_diag(lambda x: fixture.loss(golden, 3, x), x, key))
    for k in jax.random.split(key):
        assert_equal(estimate(k), want)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_the_mean_is_the_diagonal(distribution: str, key: jax.Array, x64: None) -> None:
    A = normal(0, 3, 3)
    H = A + A.T
    n = 4000
    found = hutchinson_diag(quadratic(H), jnp.zeros(3), key, num_samples=n, distribution=distribution)
    # Var[h_i] is the sum of H_ij^2 over j != i for signs, and 2 H_ii^2 more for normal numbers; five deviations.
    square = jnp.square(H)
    variance = square.sum(1) - jnp.diag(square) + (2 * jnp.diag(square) if distribution == "normal" else 0)
    assert np.all(np.abs(found - jnp.diag(H)) < 5 * np.sqrt(variance / n))
    assert np.abs(found - jnp.diag(H)).max() > 1e-6


def test_samples_are_averaged(key: jax.Array, x64: None) -> None:
    """Of n samples it is the mean, not the sum, and |h| is taken after it."""
    H = jnp.diag(jnp.array([1.0, -2.0]))
    assert_equal(hutchinson_diag(quadratic(H), jnp.zeros(2), key, num_samples=7), jnp.array([1.0, -2.0]))
    assert_equal(hutchinson_diag(quadratic(H), jnp.zeros(2), key, absolute=True), jnp.array([1.0, 2.0]))


def test_probes_follow_the_name_of_the_leaf(key: jax.Array) -> None:
    """Another leaf beside it changes nothing; two leaves of one shape have probes of their own."""
    x = jnp.zeros((8, 8))
    z = probe(key, {"a": x, "b": x}, "rademacher")
    assert not np.array_equal(z["a"], z["b"])
    np.testing.assert_array_equal(z["b"], probe(key, {"b": x}, "rademacher")["b"])
    assert set(np.unique(z["a"])) == {-1.0, 1.0}


def test_probes_on_a_mesh(key: jax.Array) -> None:
    """Under jit those of one device; inside shard_map equal on data replicas and different on shards."""
    mesh = gk.parallel.make_mesh("data=2,fsdp=4")
    x = jnp.zeros((16, 8))
    lies = NamedSharding(mesh, P("fsdp"))
    draw = jax.jit(lambda x: probe(key, {"w": x}, "normal")["w"])
    np.testing.assert_array_equal(draw(jax.device_put(x, lies)), draw(x))

    def local(x: jax.Array) -> jax.Array:
        with declare_specs({"w": x}, {"w": P("fsdp")}):
            return probe(key, {"w": x}, "normal")["w"][None]

    each = jax.shard_map(local, mesh=mesh, in_specs=P("fsdp"), out_specs=P("data", "fsdp"), check_vma=False)(x)
    np.testing.assert_array_equal(each[0], each[1])
    shards = np.asarray(each[0]).reshape(4, -1)
    assert len(np.unique(shards, axis=0)) == 4


def test_replicas_share_probes_and_average(key: jax.Array, x64: None) -> None:
    """Each replica has its part of the batch; the estimate is that of the whole batch."""
    A = normal(1, 4, 3, 3)
    H = A + A.transpose(0, 2, 1)
    x = jnp.zeros(3)
    want = hutchinson_diag(quadratic(H.mean(0)), x, key)
    found = jax.jit(jax.vmap(lambda H: hutchinson_diag(quadratic(H), x, key, axis_name="r"), axis_name="r"))(H)
    assert_equal(found, jnp.stack([want] * 4))


def test_the_average_over_space(key: jax.Array, x64: None) -> None:
    """Over the window of a convolution, the inputs of a matrix, the features of an embedding; never over a stack."""
    shapes = {
        "Conv_0": {"kernel": (2, 3, 2, 2)},
        "Dense_0": {"bias": (3,), "kernel": (4, 3)},
        "ScanBlock_0": {"kernel": (2, 4, 3)},
        "embed": {"embedding": (5, 2)},
    }
    seeds = iter(range(9))
    a = jax.tree.map(lambda s: normal(next(seeds), *s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    x = jax.tree.map(jnp.zeros_like, a)

    def loss(x: Any) -> jax.Array:
        return sum(jax.tree.leaves(jax.tree.map(lambda a, x: jnp.sum(a * x**2) / 2, a, x)), jnp.zeros(()))

    def estimate(average: str) -> Any:
        return jax.jit(lambda x: hutchinson_diag(loss, x, key, absolute=True, spatial_average=average))(x)

    everything = estimate("all")
    axes = {"Conv_0": (0, 1), "Dense_0": 0, "ScanBlock_0": 1, "embed": 1}
    for name, own in axes.items():
        leaf = "embedding" if name == "embed" else "kernel"
        h = np.abs(np.asarray(a[name][leaf]))
        want = np.broadcast_to(h.mean(own, keepdims=True), h.shape)
        assert_equal(everything[name][leaf], want)
    assert_equal(everything["Dense_0"]["bias"], jnp.abs(a["Dense_0"]["bias"]))
    convolutions = estimate("conv")
    assert_equal(convolutions["Conv_0"], everything["Conv_0"])
    assert_equal(convolutions["Dense_0"], jax.tree.map(jnp.abs, a["Dense_0"]))


def test_bfloat16_parameters_give_float32(key: jax.Array) -> None:
    h = hutchinson_diag(lambda x: jnp.sum(x**2), jnp.ones(3, jnp.bfloat16), key)
    assert h.dtype == jnp.float32 and h.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": None}, "needs params"),
        ({"params": jnp.zeros(2, jnp.int32)}, "dtype int32"),
        ({"loss_fn": lambda x: x}, "must be a scalar"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"distribution": "normall"}, "did you mean 'normal'"),
        ({"spatial_average": "conf"}, "spatial_average must be one of"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str, key: jax.Array) -> None:
    arguments = {"loss_fn": jnp.sum, "params": jnp.zeros(2), "key": key, **changes}
    with pytest.raises(ValueError, match=message):
        hutchinson_diag(**arguments)
