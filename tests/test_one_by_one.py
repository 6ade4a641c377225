"""Decompositions on CPU: one matrix at a time, so that no thread waits for those that wait themselves."""

import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.linalg.one_by_one import one_by_one
from tests.papers.replay import normal

METHODS = {
    "soap": lambda: gk.scale_by_soap(update_interval=2),
    "shampoo": lambda: gk.scale_by_shampoo(eps=0.01),
    "conda": lambda: gk.scale_by_conda(update_interval=2),
    "galore": lambda: gk.project_low_rank(rank=2, update_interval=2),
    "dion": lambda: gk.scale_by_dion(rank=2, key=0),
    "svd": lambda: gk.scale_by_muon(method="svd"),
    "kron": lambda: gk.scale_by_kron(key=jax.random.key(0)),
}
BATCHED = re.compile(r"f\d\d\[(\d+(?:,\d+)*),\d+,\d+\][^=]*? custom-call\(.*lapack_")


def test_the_same_with_any_axes_in_front(x64: None) -> None:
    A = normal(0, 2, 3, 4, 4)
    got = one_by_one(jnp.linalg.svd, A)
    for x, y in zip(got, jnp.linalg.svd(A), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)
    under = jax.vmap(lambda a: one_by_one(jnp.linalg.inv, a))(A)
    np.testing.assert_allclose(under, jnp.linalg.inv(A), rtol=1e-10)
    assert one_by_one(jnp.linalg.inv, jnp.zeros((0, 2, 2))).shape == (0, 2, 2)
    slope = jax.grad(lambda a: jnp.sum(one_by_one(jnp.linalg.inv, a)))(A)
    np.testing.assert_allclose(slope, jax.grad(lambda a: jnp.sum(jnp.linalg.inv(a)))(A), rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_no_decomposition_is_given_a_batch(name: str) -> None:
    """Also for four seeds at once."""
    tx = METHODS[name]()
    x = {f"{i}": {"kernel": normal(i, 4, 5)} for i in range(3)}
    many = jax.tree.map(lambda v: jnp.stack([v] * 4), x)

    def step(x: Any) -> Any:
        return tx.update(x, tx.init(x), x)

    text = jax.jit(jax.vmap(step)).lower(many).compile().as_text() or ""
    assert "lapack_" in text
    assert all(set(batch.split(",")) == {"1"} for batch in BATCHED.findall(text))


@pytest.mark.slow
def test_two_at_once_end() -> None:
    """Where there are two threads, and each has a batch of decompositions: products go before, so that it is they who
    ask. On two processors `jnp.linalg.qr` itself hangs within some thirty calls."""
    code = (
        "import jax, jax.numpy as jnp; from gradkit.linalg.one_by_one import one_by_one\n"
        "x = jax.random.normal(jax.random.key(0), (2, 8, 256, 256))\n"
        "f = jax.jit(lambda a, b: [one_by_one(jnp.linalg.qr, v @ v)[0] for v in (a, b)])\n"
        "for _ in range(40): jax.block_until_ready(f(x[0], x[1]))\n"
        "print('fine')"
    )
    flags = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | flags, capture_output=True, text=True, timeout=120, check=True
    )
    assert "fine" in done.stdout
