"""Muon's successors on eight devices: the numbers of one device, and the collectives of their docstrings, from HLO."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes
from tests.by_numpy import by_numpy
from tests.parallel.test_matrices import AUTO, EXPLICIT, assert_near, draw, mesh_of, put

pytestmark = pytest.mark.usefixtures("x64")

# Twelve matrices, padded to sixteen; the words of a matrix, and of the four slices of eight that Dion2 takes.
SIXTEEN, MATRIX, HALF, SQUARE = 16, 8 * 16, 4 * 16, 8 * 8
# Of oblong matrices the first bases are arbitrary in a null space.
WITH_BASES = ("kl_soap", "soap_muon", "splus")
METHODS: dict[str, Any] = {
    "normuon": gk.scale_by_normuon,
    "dion2": lambda **o: gk.scale_by_dion2(fraction=0.5, select="short", **o),
    "nordion2": lambda **o: gk.scale_by_nordion2(fraction=0.25, **o),
    "kl_soap": lambda **o: gk.scale_by_kl_soap(update_interval=1, **o),
    "soap_muon": gk.scale_by_soap_muon,
    "splus": lambda **o: gk.scale_by_splus(update_interval=2, **o),
    "adamuon": gk.scale_by_adamuon,
}
TWO = ["all-to-all"] * 2


def stack(shape: tuple[int, int] = (8, 16)) -> Any:
    return draw({f"{i:02d}/kernel": shape for i in range(12)})


def spread(name: str, spec: P, **options: Any) -> tuple[Any, Any, Any]:
    """Two updates, of one device and of eight, and the program of a step."""
    mesh = mesh_of(EXPLICIT if options.pop("explicit", False) else AUTO, x=8)
    g = stack((8, 8) if name in WITH_BASES else (8, 16))
    specs = jax.tree.map(lambda _: spec, g)
    alone = METHODS[name](**options)
    first, state = by_numpy(alone.update)(g, alone.init(g))
    want = (first, by_numpy(alone.update)(jax.tree.map(lambda x: x[::-1], g), state)[0])
    tx = METHODS[name](shard=gk.MatrixSharding(mesh, "x", min_dim=0, specs=spec), **options)
    there = put(mesh, g, specs)
    with jax.set_mesh(mesh):
        state = tx.init(there)
        program = jax.jit(tx.update).lower(there, state).compile()
        one, state = program(there, state)
        two, _ = program(put(mesh, jax.tree.map(lambda x: x[::-1], g), specs), state)
    return want, (one, two), program


@pytest.mark.full_pipeline
@pytest.mark.parametrize(
    ("name", "spec", "opcodes", "words"),
    [
        ("normuon", P(), ["all-gather"], SIXTEEN * MATRIX),
        ("normuon", P("x"), TWO, 2 * SIXTEEN * MATRIX // 8),
        ("normuon", P(None, "x"), TWO, 2 * SIXTEEN * MATRIX // 8),
        # Half of the words; where the other axis is sharded, one number per slice is summed besides.
        ("dion2", P(), ["all-gather"], SIXTEEN * HALF),
        ("dion2", P(None, "x"), ["all-reduce", *TWO], SIXTEEN * 8 + 2 * SIXTEEN * HALF // 8),
        # The slices that are selected may all be on one device: norms are gathered, and complete matrices sent.
        ("dion2", P("x"), ["all-gather", *TWO], SIXTEEN * 8 + 2 * SIXTEEN * MATRIX // 8),
        ("nordion2", P("x"), ["all-reduce", *TWO], SIXTEEN * 16 + 2 * SIXTEEN * (MATRIX // 4) // 8),
        ("kl_soap", P(), ["all-gather"], SIXTEEN * SQUARE),
        ("kl_soap", P("x"), TWO, 2 * SIXTEEN * SQUARE // 8),
        ("splus", P(), ["all-gather"], SIXTEEN * SQUARE),
        ("splus", P(None, "x"), TWO, 2 * SIXTEEN * SQUARE // 8),
        ("soap_muon", P("x"), TWO, 2 * SIXTEEN * SQUARE // 8),
        ("adamuon", P("x"), TWO, 2 * SIXTEEN * MATRIX // 8),
    ],
    ids=lambda value: str(value) if isinstance(value, str | P) else "",
)
def test_one_exchange_and_the_counted_words(name: str, spec: P, opcodes: list[str], words: int) -> None:
    want, got, program = spread(name, spec)
    rows = collective_bytes(program)
    assert sorted(row.opcode for row in rows) == sorted(opcodes)
    assert sum(row.result_bytes for row in rows) == 8 * words
    # Eigenvectors turn by a rounding of 2^-53 over the gap of their eigenvalues, 1e-4 of the largest at least here, and
    # twelve Newton-Schulz steps magnify by 2^12.
    assert_near(got, want, 1e-7 if name in WITH_BASES else 1e-11)


def test_the_norm_that_normuon_keeps_is_that_of_the_matrix_and_not_of_a_shard() -> None:
    """A wide matrix, the first half of whose outputs is larger, sharded into these halves: neurons are equally long
    under one factor for all of them. Dion's repository takes the norms of every shard for itself."""
    columns = np.where(np.arange(16) < 8, 10.0, 1.0)
    g = {"w": jnp.asarray(columns * np.random.default_rng(0).normal(size=(6, 16)))}
    mesh, plain = mesh_of(x=2), gk.scale_by_muon(method="svd", scale=None)
    o = np.asarray(by_numpy(lambda g: plain.update(g, plain.init(g))[0])(g)["w"])
    p = o / np.sqrt(np.mean(o**2, axis=0))  # the share of b2 cancels
    want = p * np.linalg.norm(o) / np.linalg.norm(p)
    halves = zip(np.split(p, 2, axis=1), np.split(o, 2, axis=1), strict=True)
    by_shard = np.concatenate([h * np.linalg.norm(a) / np.linalg.norm(h) for h, a in halves], axis=1)
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=P(None, "x"))
    tx = gk.scale_by_normuon(method="svd", scale=None, nu_eps=0.0, shard=shard)
    got = np.asarray(jax.jit(lambda g: tx.update(g, tx.init(g))[0])(put(mesh, g, {"w": P(None, "x")}))["w"])
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
    assert np.abs(by_shard - want).max() > 0.3 * np.abs(want).max()


@pytest.mark.parametrize("name", ["dion2", "nordion2"])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x")], ids=["rows", "columns"])
def test_explicit_axes(name: str, spec: P) -> None:
    want, got, _ = spread(name, spec, explicit=True)
    assert_near(got, want, 1e-11)


def test_local_selection_depends_on_the_mesh_and_global_does_not() -> None:
    """A matrix whose large rows are on one device: of them the global selection takes all."""
    sizes = np.diag([9.0, 8.0, 7.0, 6.0, 1.0, 1.0, 1.0, 1.0])
    g = {"w": jnp.asarray(sizes @ np.sign(np.random.default_rng(0).normal(size=(8, 16))))}
    mesh = mesh_of(x=2)
    taken = {}
    for selection in ("global", "local"):
        shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=P("x"))
        tx = gk.scale_by_dion2(fraction=0.5, selection=selection, shard=shard)
        there = put(mesh, g, {"w": P("x")})
        program = jax.jit(lambda g, tx=tx: tx.update(g, tx.init(g))[0]).lower(there).compile()
        sent = {row.opcode: row.result_bytes for row in collective_bytes(program)}
        assert sent["all-to-all"] == 8 * 2 * MATRIX // (1 if selection == "global" else 2) // 2
        d = np.asarray(program(there)["w"])
        taken[selection] = np.flatnonzero(np.abs(d).sum(axis=1)).tolist()
    assert taken["global"] == [0, 1, 2, 3]
    assert len(taken["local"]) == 4 and sum(i < 4 for i in taken["local"]) == 2
