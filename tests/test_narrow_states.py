"""States in few bits and in host memory: factors, owners, boxes, shardings, descriptions."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import meta
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradkit as gk
from gradkit.engine import memory
from gradkit.engine.codecs import Blocks, Exact, Narrow, SquareBlocks, decode, encode_int8, encode_square, is_encoded
from gradkit.engine.owned import Owned

FORMS = ["bfloat16", "int8-block"]


def codes_of(state: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(state, is_leaf=is_encoded) if is_encoded(x)]


def test_what_does_not_change_keeps_its_code() -> None:
    """Bases and snapshots stand still for many steps: a dither that moved them would be a random walk. The thresholds
    of 2000 steps include the smallest, at which rounding of the decoded number would cost a level."""
    rng = np.random.default_rng(0)
    signed = jnp.asarray(rng.standard_normal((4, 50)) * 10.0 ** rng.integers(-20, 20, (4, 1)), jnp.float32)
    for s in (signed, jnp.square(signed)):
        first = encode_int8(s, jnp.int32(0), 256)
        back = first.decode()
        again = jax.jit(jax.vmap(encode_int8, (None, 0, None)), static_argnums=2)(back, jnp.arange(2000), 256)
        np.testing.assert_array_equal(again.codes, np.broadcast_to(first.codes, again.codes.shape))
        np.testing.assert_array_equal(again.scales, np.broadcast_to(first.scales, again.scales.shape))


def test_diagonals_are_exact_and_set_no_scale() -> None:
    """A triangular factor whose diagonal is 1000 times smaller than its row stays invertible; a statistic whose
    diagonal is 1000 times larger keeps what is beside it."""
    rng = np.random.default_rng(1)
    for ratio in (1e-3, 1e3):
        s = rng.standard_normal((2, 9, 9)).astype(np.float32)
        s[:, range(9), range(9)] = ratio * (1 + rng.random((2, 9)).astype(np.float32))
        code = encode_square(jnp.asarray(s), jnp.int32(3), 256)
        back = np.asarray(code.decode())
        assert code.codes.dtype == jnp.int8 and code.diagonal.shape == (2, 9)
        np.testing.assert_array_equal(np.diagonal(back, axis1=1, axis2=2), np.diagonal(s, axis1=1, axis2=2))
        beside = np.where(np.eye(9, dtype=bool), 0, np.abs(s))
        assert np.all(np.abs(back - s) <= beside.max(-1, keepdims=True) * (1 / 127 + 1e-6))


METHODS = {
    "soap": (gk.soap, 0.03, {}),
    "shampoo": (gk.shampoo, 0.3, {"eps": 1e-3}),
    "distributed_shampoo": (gk.distributed_shampoo, 0.03, {"grafting": "adam", "b2": 0.99, "eps": 1e-3}),
    "kron": (gk.kron, 0.02, {"key": 0}),
    "conda": (gk.conda, 0.03, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_factors_in_few_bits_descend(name: str) -> None:
    """Least squares with inputs of very different sizes: the loss falls as with float32 factors, to a fifth
    or less, and to within 2 % of where it started from."""
    make, rate, options = METHODS[name]
    rng = np.random.default_rng(2)
    a = jnp.asarray(rng.standard_normal((64, 12)) * np.logspace(0, -1, 12), jnp.float32)
    b = a @ jnp.asarray(rng.standard_normal((12, 8)), jnp.float32)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(a @ x["kernel"] - b))

    def final(form: str | None) -> jax.Array:
        tx = gk.precision(make(rate, **options), state=form)

        def step(carry: Any, _: Any) -> Any:
            x, s = carry
            updates, s = tx.update(jax.grad(loss)(x), s, x)
            return (optax.apply_updates(x, updates), s), None

        x = {"kernel": jnp.zeros((12, 8))}
        return loss(jax.lax.scan(step, (x, tx.init(x)), length=80)[0][0])

    wide, *narrow = jax.jit(lambda: [final(form) for form in (None, *FORMS)])()
    start = loss({"kernel": jnp.zeros((12, 8))})
    assert wide < 0.2 * start
    assert all(x - wide < 0.02 * (start - wide) for x in narrow)


@pytest.mark.full_pipeline
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("form", FORMS)
def test_stacks_with_owners_are_coded_where_they_are(kind: Any, form: str) -> None:
    """With `shard` every device holds an eighth of the codes, `state_shardings` knows, and the step is the one of one
    device: rows of a stack are coded by themselves."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(kind,))
    rng = np.random.default_rng(3)
    w, g = (rng.standard_normal((8, 16, 16)).astype(np.float32) for _ in range(2))
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    spec = {"layers/kernel": PartitionSpec("fsdp")}

    def steps(tx: Any, params: Any, grads: Any, out: Any) -> Any:
        def step(params: Any, state: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.jit(tx.init, out_shardings=None if out is None else out[1])(params)
        run = jax.jit(step, out_shardings=out)
        for _ in range(3):
            params, state = run(params, state)
        assert run._cache_size() == 1
        return params, state

    tree = lambda x, place=None: {"layers": {"kernel": jax.device_put(x, place)}}  # noqa: E731
    with jax.set_mesh(mesh):
        tx = gk.precision(gk.soap(0.1, eps=1.0, shard=gk.MatrixSharding(mesh, "fsdp", specs=spec)), state=form)
        params = tree(w, place)
        out = {"layers": {"kernel": place}}, gk.parallel.state_shardings(tx, params)
        params, state = steps(tx, params, tree(g, place), out)
    alone, other = steps(gk.precision(gk.soap(0.1, eps=1.0), state=form), tree(w), tree(g), None)
    # Eigenvectors of an eighth of a batch and of the batch differ by roundings, which may tip a code by one level, the
    # 127th part of the largest of a row; with eps = 1 the direction moves by no more, and the rate is 0.1.
    np.testing.assert_allclose(params["layers"]["kernel"], alone["layers"]["kernel"], rtol=0, atol=0.1 * 3 / 127)
    codes, others = codes_of(state), codes_of(other)
    assert len(codes) == len(others) == 6
    for code in codes:
        for x in code:
            assert x.sharding.spec[0] in ("fsdp", ("fsdp",)) and x.addressable_shards[0].data.shape[0] * 8 == x.shape[0]
    assert sum(x.nbytes for x in jax.tree.leaves(codes)) == sum(x.nbytes for x in jax.tree.leaves(others))


def test_codes_with_owners_find_their_rows_on_another_mesh(tmp_path: Path) -> None:
    """Written on 8 devices, where three matrices are padded to eight rows, and read on 2 and on 4: what every matrix
    had is with it again, and padding is no matrix."""
    rng = np.random.default_rng(5)
    tree = {name: {"kernel": rng.standard_normal((8, 16)).astype(np.float32)} for name in "abc"}

    def on(devices: int) -> Any:
        mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=PartitionSpec())
        tx = gk.precision(gk.scale_by_soap(shard=shard), state="int8-block")
        params = jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
        with jax.set_mesh(mesh):
            return tx, params, gk.parallel.init_sharded(tx, params)

    def rows(state: Any) -> dict[str, list[np.ndarray]]:
        owned = [x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Owned)) if isinstance(x, Owned)]
        found: dict[str, list[np.ndarray]] = {}
        for stack in owned:
            for i, row in enumerate(stack.rows):
                found.setdefault(row, []).extend(np.asarray(x)[i] for x in jax.tree.leaves(stack.arrays) if row)
        return {row: arrays for row, arrays in found.items() if row}

    tx, params, state = on(8)
    for _ in range(2):
        _, state = jax.jit(tx.update)(params, state, params)
    with gk.training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, {"opt_state": state})
    want = rows(state)
    assert sorted(want) == ["a/kernel[0,0]", "b/kernel[0,0]", "c/kernel[0,0]"]
    for devices in (2, 4):
        back, report = gk.training.Checkpoints(tmp_path).restore({"opt_state": on(devices)[2]})
        assert not report.fresh and not report.dropped
        got = rows(back["opt_state"])
        assert sorted(got) == sorted(want)
        for row, arrays in want.items():
            assert len(arrays) == len(got[row])
            for x, y in zip(arrays, got[row], strict=True):
                np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("form", FORMS)
def test_codes_of_factors_carry_names_and_shardings(form: str) -> None:
    """A code of a factor has the logical names, or mesh axes, of the factor; scales and diagonals all but the last."""
    w = jax.ShapeDtypeStruct((3, 8, 16), jnp.float32)
    tx = gk.precision(gk.soap(0.1), state=form)
    box = {"layers": {"kernel": meta.Partitioned(w, names=("layers", "embed", "mlp"))}}
    S, coded = (jax.eval_shape(t.init, box) for t in (gk.soap(0.1), tx))
    plain, code = S[0].S["layers"]["kernel"]["0"], coded.inner[0].S["layers"]["kernel"]["0"]
    first, *rest = code
    assert first.names == plain.names and all(x.names == plain.names[:-1] + (None,) * (x.value.ndim - 2) for x in rest)
    assert coded.inner[0].mu["layers"]["kernel"][0].names == ("layers", "embed", "mlp")
    bare = jax.eval_shape(tx.init, {"layers": {"kernel": w}})
    assert jax.tree.leaves(bare) == jax.tree.leaves(coded)

    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp", "data")))
    spec = lambda t: jax.tree.map(lambda s: s.spec, gk.parallel.state_shardings(t, {"layers": {"kernel": placed}}))  # noqa: E731
    own, of_code = (spec(t) for t in (gk.soap(0.1), tx))
    assert of_code.inner[0].S["layers"]["kernel"]["0"][0] == own[0].S["layers"]["kernel"]["0"] != PartitionSpec()


def test_variables_hold_codes() -> None:
    """A step of `nnx.Optimizer` with coded factors keeps the structure of its state."""
    model = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gk.precision(gk.soap(0.1), state="int8-block"), wrt=nnx.Param)
    before = jax.tree.structure(nnx.state(optimizer))
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    assert jax.tree.structure(nnx.state(optimizer)) == before


@pytest.mark.parametrize("form", FORMS)
def test_dtypes_without_a_code_are_named(form: str) -> None:
    with jax.enable_x64(True):
        wide = {"dense": {"kernel": jnp.ones((4, 8), jnp.float64)}}
        with pytest.raises(ValueError, match=r"'0/mu/dense/kernel' is float64, and state='.*' has codes of float32"):
            gk.precision(gk.adam(1e-3), state=form).init(wide)
    with pytest.raises(ValueError, match="is complex64"):
        gk.precision(gk.sgd(1e-3, momentum=0.9), state=form).init({"w": jnp.ones((4, 8), jnp.complex64)})


def test_moments_that_are_narrow_already() -> None:
    """A moment in bfloat16 gains nothing from bfloat16, and is coded in 8 bits, from which bfloat16 comes back."""
    p = {"w": jnp.linspace(1.0, 2.0, 64).reshape(2, 32)}
    for form, kind in (("bfloat16", jax.Array), ("int8-block", Blocks)):
        tx = gk.precision(gk.lion(1e-3, mu_dtype=jnp.bfloat16), state=form)
        _, state = tx.update(p, tx.init(p), p)
        mu = state.inner[0].mu["w"]
        assert isinstance(mu, kind) and decode(mu).dtype == jnp.bfloat16
        # A level of 127, and a rounding of bfloat16.
        np.testing.assert_allclose(decode(mu).astype(jnp.float32), 0.01 * p["w"], rtol=0, atol=0.02 / 127 + 0.02 / 2**8)


def test_parameters_in_states_of_optax_are_kept_exactly() -> None:
    """Of every optimizer of optax: what its state has of the size of the parameters is no code."""
    p = {"w": 100 + jnp.linspace(0.0, 1.0, 64).reshape(2, 32)}
    found = set()
    for module in (optax, optax.contrib):
        for name in ("adam", "cocob", "dog", "dowg", "lbfgs", "madgrad", "prodigy", "schedule_free_adamw"):
            if not hasattr(module, name):
                continue
            make: Any = getattr(module, name)
            tx = gk.precision(make() if name in ("lbfgs", "cocob", "dowg") else make(1e-3), state="int8-block")
            for code in codes_of(tx.init(p)):
                far = np.median(np.abs(np.asarray(code.decode(), np.float64))) > 50
                assert not far or isinstance(code, Exact), name
                found |= {name} if far else set()
    assert found == {"cocob", "dog", "dowg", "madgrad", "prodigy", "schedule_free_adamw"}


def test_describe_counts_what_codes_save() -> None:
    """Of the bytes of the state without codes every one is left or saved, leaf by leaf; averages are kept exactly."""
    params = {"dense": {"kernel": jnp.ones((64, 48)), "bias": jnp.ones(48)}}
    tx = optax.chain(gk.soap(1e-3), gk.params_ema(0.9))
    plain = gk.leaves.describe(tx, params)
    for form, kinds in (("bfloat16", {Narrow, Exact}), ("int8-block", {Blocks, SquareBlocks, Exact})):
        coded = gk.precision(tx, state=form)
        told = gk.leaves.describe(coded, params)
        for row, before in zip(told.rows, plain.rows, strict=True):
            assert row.state_bytes + row.saved_bytes == before.state_bytes
            assert row.exact_bytes == 4 * np.prod(row.shape)
        assert "saved bytes  kept exactly" in str(told) and "saved" not in str(plain)
        assert {type(code) for code in codes_of(jax.eval_shape(coded.init, params))} == kinds


@pytest.mark.parametrize("form", FORMS)
def test_moments_sharded_along_their_last_axis(form: str) -> None:
    """Over Explicit axes a block may be on several devices: codes are sharded as the moment, scales are not, and they
    are those of one device."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))
    tx = gk.precision(gk.adam(0.1), state=form)
    grads = {"bias": jnp.linspace(-1.0, 1.0, 16), "square": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)}
    specs = {"bias": PartitionSpec("fsdp"), "square": PartitionSpec(None, "fsdp")}
    spread = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), grads, specs)
    _, want = jax.jit(tx.update)(grads, tx.init(grads), grads)
    with jax.set_mesh(mesh):
        _, got = jax.jit(tx.update)(spread, jax.jit(tx.init)(spread), spread)
    for x, y in zip(codes_of(got), codes_of(want), strict=True):
        assert x[0].sharding.spec[-1] == "fsdp" and all("fsdp" not in z.sharding.spec for z in x[1:])
        for a, b in zip(x, y, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def kinds_of(state: Any) -> set[tuple[str, bool]]:
    """Memories of arrays, and whether they take at least 1 KiB."""
    arrays = [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return {(x.sharding.memory_kind, x.nbytes >= memory.SMALLEST) for x in arrays}


@pytest.mark.full_pipeline
@pytest.mark.parametrize("form", [None, "int8-block"])
def test_states_in_host_memory(form: str | None) -> None:
    """Arrays of 1 KiB and more are on the host before and after every step, in a loop, in a scan and from a sharded
    init; the numbers are those of a state on the device."""
    rng = np.random.default_rng(4)
    params = {"kernel": jnp.asarray(rng.standard_normal((64, 32)), jnp.bfloat16), "bias": jnp.zeros(8)}
    grads = jax.tree.map(lambda x: x + 1, params)
    there, here = (gk.precision(gk.adamw(0.1), master=True, state=form, memory_kind=k) for k in ("pinned_host", None))
    host = {("pinned_host", True), ("device", False)}

    def run(tx: Any, params: Any, state: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            updates, state = tx.update(grads, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, state), length=3)[0]

    state = there.init(params)
    assert kinds_of(state) == kinds_of(jax.jit(there.init)(params)) == host
    assert kinds_of(there.update(grads, state, params)) == host | {("device", True)}
    got, state = jax.jit(run, static_argnums=0)(there, params, state)
    want, other = jax.jit(run, static_argnums=0)(here, params, here.init(params))
    assert kinds_of(state) == host and kinds_of(got) == {("device", True), ("device", False)}
    for x, y in zip(jax.tree.leaves((got, state)), jax.tree.leaves((want, other)), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    mesh = jax.make_mesh((8,), ("fsdp",))
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    spread = jax.device_put(params, place)
    shardings = gk.parallel.state_shardings(there, spread)
    state = gk.parallel.init_sharded(there, spread)
    assert kinds_of(state) == host and jax.tree.map(lambda x: x.sharding, state) == shardings
    out = {"kernel": place, "bias": place}, shardings
    _, state = jax.jit(run, static_argnums=0, out_shardings=out)(there, spread, state)
    assert kinds_of(state) == host


def test_memories_that_the_backend_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which there are; shapes are refused too, and nothing is asked before `init`."""
    tx = gk.precision(gk.adam(0.1), memory_kind="pinned_host")
    device = type("Device", (), {"platform": "tpu", "addressable_memories": lambda self: []})()
    monkeypatch.setattr(memory.jax, "devices", lambda: [device])
    with pytest.raises(ValueError, match=r"memory_kind='pinned_host', and the memories of tpu devices are \[\]"):
        tx.init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="memory_kind must be one of"):
        gk.precision(gk.adam(0.1), memory_kind="disk")
