"""A checkpoint is whole or not there, comes back bit for bit on any mesh, and is refused where it does not belong."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.training import Checkpoints, make_train_step
from gradkit.training.links import listing
from gradkit.training.run import Run, first_params, start, step_function
from gradkit.workloads import load
from tests.contract.methods import Model, draw, other_trees, same

PARAMS = {"dense": {"bias": (4,), "kernel": (6, 4)}}


def run_of(tx: optax.GradientTransformation, seed: int = 0, shapes: Any = PARAMS, filled: bool = True) -> Run:
    """A run whose state holds numbers of its own in every leaf, or the fresh one."""
    params = draw(seed, shapes)
    fresh = Run(jnp.int32(0), params, tx.init(params), jax.random.key(seed))
    if not filled:
        return fresh
    state = jax.tree.map(lambda x: jnp.full_like(x, seed + 3) + x, fresh.opt_state)
    return fresh._replace(step=jnp.int32(40), opt_state=state)


def refusal(folder: Path, like: Any, **how: Any) -> str:
    with pytest.raises(ValueError) as error:
        Checkpoints(folder).restore(like, **how)
    return str(error.value).replace(str(folder), "FOLDER")


def saved(folder: Path, state: Any, **about: Any) -> Any:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(40, state, about=about)
    return state


def test_every_kind_of_leaf_comes_back_with_its_bits(tmp_path: Path) -> None:
    """Also names that look like paths, and keys of every generator."""
    nan = np.asarray([0x7FC00001, 0x80000000], np.uint32).view(np.float32)  # a NaN with a payload, and -0
    state = {
        "params": {"mlp/~/lin.1 %": jnp.asarray(nan), "empty": jnp.zeros((0, 3)), "": jnp.bfloat16(1.5)},
        "few bits": [jnp.ones(3, kind) for kind in (jnp.int8, jnp.float8_e4m3fn, jnp.int4, jnp.bool_, jnp.float16)],
        "keys": (jax.random.key(1), jax.random.split(jax.random.key(2, impl="rbg"), 3)),
        "numpy": np.arange(3, dtype=np.int16),
        "none": (None, optax.MaskedNode(), optax.EmptyState(), {}),
        "complex": jnp.asarray([1 + 2j], np.complex64),
    }
    saved(tmp_path, state)
    got, report = Checkpoints(tmp_path).restore(state)
    abstract, _ = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: state))
    assert jax.tree.structure(got) == jax.tree.structure(state) and type(got["numpy"]) is np.ndarray
    same(jax.tree.map(_bits, got), jax.tree.map(_bits, state))
    same(jax.tree.map(_bits, abstract), jax.tree.map(_bits, state))
    assert set(report.kept) == {leaf.name for leaf in listing(state).leaves}
    assert not report.dropped and not report.fresh
    # A new array may go to any device, and so may what is read in its place.
    assert not got["params"][""].committed and not got["keys"][0].committed


def _bits(x: Any) -> Any:
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return x.view(np.uint32) if x.dtype == np.float32 and x.size else x


def test_float64(tmp_path: Path, x64: None) -> None:
    state = saved(tmp_path, {"params": jnp.asarray([1 / 3], np.float64)})
    same(Checkpoints(tmp_path).restore(state)[0], state)
    with jax.enable_x64(False):
        like = {"params": jnp.zeros(1, np.float32)}
        assert "params: it is float64[1] in the checkpoint and float32[1] here" in refusal(tmp_path, like)


@pytest.mark.parametrize("name", other_trees())
def test_any_tree_of_parameters(name: str, tmp_path: Path) -> None:
    params = other_trees()[name]
    tx = gk.adamw(0.1)
    state = saved(tmp_path, Run(jnp.int32(1), params, tx.init(params), jax.random.key(0)))
    got, _ = Checkpoints(tmp_path).restore(state)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    same(got, state)


def test_the_state_of_a_training_step_with_a_module(tmp_path: Path) -> None:
    def loss(model: Any, batch: Any) -> Any:
        return jnp.mean(model.layer(batch) ** 2)

    step = make_train_step(loss, gk.adamw(0.1))
    batch = jnp.ones((4, 6))
    state, _ = step(step.init(Model(nnx.Rngs(0))), batch)
    saved(tmp_path, state)
    fresh = step.init(Model(nnx.Rngs(1)))
    got, _ = Checkpoints(tmp_path).restore(fresh)
    same(step(got, batch)[0], step(state, batch)[0])


def test_names_tell_link_and_field() -> None:
    labels = {"bias": "plain", "kernel": "rich"}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.named_chain(
            ("split", optax.partition({"plain": optax.sgd(1.0), "rich": optax.scale_by_adam()}, labels)),
        ),
    )
    params = draw(0, {"bias": (4,), "kernel": (6, 4)})
    rows = listing(Run(jnp.int32(0), params, tx.init(params), jax.random.key(0)))
    deep = "opt_state/1/split/PartitionState/inner_states"
    assert [leaf.name for leaf in rows.leaves] == [
        "step",
        "params/bias",
        "params/kernel",
        f"{deep}/rich/MaskedState/inner_state/ScaleByAdamState/count",
        f"{deep}/rich/MaskedState/inner_state/ScaleByAdamState/mu/kernel",
        f"{deep}/rich/MaskedState/inner_state/ScaleByAdamState/nu/kernel",
        "key",
    ]
    assert rows.links[:4] == ("step", "params", "opt_state", "opt_state/0/EmptyState")
    assert f"{deep}/plain/MaskedState/inner_state/0/EmptyState" in rows.links


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path: Path) -> None:
    state = {"params": jnp.zeros((1000, 1000)), "small": jnp.zeros(3)}
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        for i in range(3):
            checkpoints.save(i, state)
            for _ in range(4):
                state = step(state)
        checkpoints.wait()
        for i in range(3):
            got, _ = checkpoints.restore(state, step=i)
            assert all((np.asarray(x) == 4 * i).all() for x in jax.tree.leaves(got))


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    problem, seed = load("heavytail"), jnp.uint32(3)
    tx = gk.adamw(lambda count: 1e-2 / (1.0 + count.astype(jnp.float32)))
    step = jax.jit(step_function(problem, tx), donate_argnums=0)

    def begin() -> Run:
        return start(first_params(problem, seed), tx, seed)

    whole = begin()
    for _ in range(10):
        whole, _ = step(whole)
    for stop in (3, 7, 10):
        with Checkpoints(tmp_path) as checkpoints:
            state = begin()
            if checkpoints.latest() is not None:
                state, _ = checkpoints.restore(jax.eval_shape(begin))
            while state.step < stop:
                state, _ = step(state)
            checkpoints.save(stop, state)
    got, _ = Checkpoints(tmp_path).restore(whole)
    same(got, whole)


def mesh_of(*shape: int, kind: AxisType = AxisType.Auto) -> Mesh:
    names = ("data", "fsdp", "tensor")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=jax.devices()[: int(np.prod(shape))])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_another_mesh_gives_the_same_numbers(kind: AxisType, tmp_path: Path) -> None:
    """More devices, fewer, one; cut along other axes; each device is given its own part only."""
    first = mesh_of(2, 2, 2, kind=kind)
    values = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)

    def place(mesh: Mesh, spec: P) -> Any:
        keys = jax.device_put(jax.random.split(jax.random.key(5), 2), NamedSharding(mesh, P(spec[0])))
        return {"params": jax.device_put(values, NamedSharding(mesh, spec)), "key": keys}

    state = saved(tmp_path, place(first, P("data", ("fsdp", "tensor"))))
    for mesh, spec in [
        (first, P("tensor", None)),
        (mesh_of(2, 4, kind=kind), P("data", "fsdp")),
        (mesh_of(1), P(None)),
    ]:
        like = place(mesh, spec)
        got, _ = Checkpoints(tmp_path).restore(like)
        same(got, state)
        for x, want in zip(jax.tree.leaves(got), jax.tree.leaves(like), strict=True):
            assert x.sharding == want.sharding
        parts = {shard.data.shape for shard in got["params"].addressable_shards}
        assert parts == {like["params"].sharding.shard_shape((16, 8))}


# --- what is refused -------------------------------------------------------------------------------------------------

CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale(-0.1))
PLAIN = optax.chain(optax.scale_by_adam(), optax.scale(-0.1))
WAY = ". With transplant=True what matches is carried over"


@pytest.mark.parametrize(
    ("tx", "shapes", "text"),
    [
        (CLIPPED, PARAMS, f"chain: opt_state/0/EmptyState is here only{WAY}"),
        (
            optax.chain(optax.trace(0.9), optax.scale(-0.1)),
            PARAMS,
            "chain: opt_state/0/ScaleByAdamState is in the checkpoint only; opt_state/0/TraceState is here only" + WAY,
        ),
        (
            optax.chain(optax.scale(-0.1), optax.scale_by_adam()),
            PARAMS,
            "chain: opt_state/0/EmptyState is opt_state/1/EmptyState in the checkpoint; "
            f"opt_state/1/ScaleByAdamState is opt_state/0/ScaleByAdamState in the checkpoint{WAY}",
        ),
        (
            optax.chain(optax.scale_by_adam(mu_dtype=jnp.bfloat16), optax.scale(-0.1)),
            PARAMS,
            "chain: opt_state/0/ScaleByAdamState: "
            "mu/dense/bias is float32[4] in the checkpoint and bfloat16[4] here, "
            f"mu/dense/kernel is float32[6,4] in the checkpoint and bfloat16[6,4] here{WAY}",
        ),
        (
            PLAIN,
            {"dense": {"kernel": (6, 5)}},
            "chain: params: dense/bias is in the checkpoint only, "
            "dense/kernel is float32[6,4] in the checkpoint and float32[6,5] here; "
            "opt_state/0/ScaleByAdamState: mu/dense/bias is in the checkpoint only, "
            "mu/dense/kernel is float32[6,4] in the checkpoint and float32[6,5] here, "
            "nu/dense/bias is in the checkpoint only, and 1 more",
        ),
    ],
    ids=["a link more", "another link", "another order", "another dtype", "other parameters"],
)
def test_another_chain_is_refused_link_by_link(tx: Any, shapes: Any, text: str, tmp_path: Path) -> None:
    saved(tmp_path, run_of(PLAIN))
    got = refusal(tmp_path, run_of(tx, shapes=shapes))
    assert got == f"the checkpoint of step 40 in FOLDER is of another {text}"


def test_another_run_is_refused_by_what_it_says_of_itself(tmp_path: Path) -> None:
    state = saved(tmp_path, run_of(PLAIN), seed=0, betas=(0.9, 0.99), batch=64)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.about() == {"seed": 0, "betas": [0.9, 0.99], "batch": 64}
    checkpoints.restore(state, about={"seed": 0, "betas": (0.9, 0.99)})  # a tuple is a list in JSON
    for transplant in (False, True):
        assert refusal(tmp_path, state, about={"seed": 1, "method": "lion", "batch": 64}, transplant=transplant) == (
            "the checkpoint of step 40 in FOLDER is of another run: seed is 0 there and 1 here; "
            'method is not said there and "lion" here'
        )
    with pytest.raises(ValueError, match="about must be a mapping that JSON can hold"):
        checkpoints.save(41, state, about={"loss": float("nan")})


def test_bad_calls(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path / "a" / "b", keep=1), run_of(PLAIN)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*/a/b$"):
        checkpoints.restore(state)
    with pytest.raises(ValueError, match="keep must be an integer >= 1, got 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step must be an integer >= 0, got -1"):
        checkpoints.save(-1, state)
    with pytest.raises(TypeError, match=r"'params/w' is 1\.0"):
        checkpoints.save(1, {"params": {"w": 1.0}})
    with pytest.raises(ValueError, match="two leaves are called 'params/a/b'"):
        checkpoints.save(1, {"params": {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}})
    checkpoints.save(5, state)
    with pytest.raises(ValueError, match="has a checkpoint of step 5 already: step must be above, got 5"):
        checkpoints.save(5, state)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4 in .*; there are 5"):
        checkpoints.restore(state, step=4)
    note = checkpoints.folder / "5" / "about" / "about.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="has format 99, and this version of gradkit reads 3"):
        checkpoints.restore(state)


# --- transplants -----------------------------------------------------------------------------------------------------


def transplanted(folder: Path, old: Any, new: Any, shapes: Any = PARAMS) -> Any:
    state = saved(folder, run_of(old, shapes=shapes))
    return state, *Checkpoints(folder).restore(run_of(new, 1, shapes, filled=False), transplant=True)


def test_a_link_in_front_keeps_the_moments(tmp_path: Path) -> None:
    old = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda count: 0.1), optax.trace(0.9))
    new = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_lion(), optax.scale_by_adam(), optax.trace(0.9))
    state, got, report = transplanted(tmp_path, old, new)
    same((got.step, got.params, got.key), (state.step, state.params, state.key))
    same(got.opt_state[2:], (state.opt_state[0], state.opt_state[2]))
    same(got.opt_state[1], run_of(new, 1, filled=False).opt_state[1])
    assert report.kept["opt_state/2/ScaleByAdamState/mu/dense/bias"] == "opt_state/0/ScaleByAdamState/mu/dense/bias"
    assert report.dropped == ("opt_state/1/ScaleByScheduleState/count",)
    assert report.fresh == tuple(
        f"opt_state/1/ScaleByLionState/{field}" for field in ("count", "mu/dense/bias", "mu/dense/kernel")
    )
    lines = str(report).splitlines()
    assert lines[0].startswith("kept 11: step; params/dense/bias; ")
    assert "opt_state/3/TraceState/trace/dense/bias, which was opt_state/2/TraceState/trace/dense/bias" in lines[0]
    assert lines[1] == "dropped 1: opt_state/1/ScaleByScheduleState/count"
    assert lines[2].startswith("fresh 3: opt_state/1/ScaleByLionState/count; ")


def test_two_links_of_one_class_keep_their_order(tmp_path: Path) -> None:
    old = optax.chain(optax.trace(0.9), optax.trace(0.5))
    state = saved(tmp_path, run_of(old))
    state = state._replace(opt_state=(state.opt_state[0], jax.tree.map(lambda x: 2 * x, state.opt_state[1])))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(41, state)
    new = optax.chain(optax.trace(0.9), optax.scale_by_adam(), optax.trace(0.5))
    got, _ = Checkpoints(tmp_path).restore(run_of(new, 1, filled=False), transplant=True)
    same((got.opt_state[0], got.opt_state[2]), state.opt_state)
    got, report = Checkpoints(tmp_path).restore(run_of(optax.trace(0.9), 1, filled=False), transplant=True)
    same(got.opt_state, state.opt_state[0])
    assert report.dropped == tuple(f"opt_state/1/TraceState/trace/dense/{name}" for name in ("bias", "kernel"))


@pytest.mark.parametrize("split", [True, False], ids=["split", "merged"])
def test_moments_follow_parameters_between_labels(split: bool, tmp_path: Path) -> None:
    """A counter goes with the moments it corrects, to both parts, in arrays that can each be donated."""
    parts = optax.partition({"a": optax.scale_by_adam(), "b": optax.scale_by_adam()}, {"bias": "a", "kernel": "b"})
    one, shapes = optax.scale_by_adam(), {"bias": (4,), "kernel": (6, 4)}
    state, got, report = transplanted(tmp_path, *((one, parts) if split else (parts, one)), shapes)

    def adam(tree: Any) -> list[Any]:
        return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))

    (whole,), pieces = (adam(r.opt_state) for r in ((state, got) if split else (got, state)))
    for field in ("mu", "nu"):
        same(getattr(whole, field)["bias"], getattr(pieces[0], field)["bias"])
        same(getattr(whole, field)["kernel"], getattr(pieces[1], field)["kernel"])
    assert int(whole.count) == int(pieces[0].count) == int(pieces[1].count) == 3
    assert not report.fresh
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(got.opt_state)


def test_a_transplant_takes_all_parameters_or_none(tmp_path: Path) -> None:
    saved(tmp_path, run_of(PLAIN))
    other = run_of(CLIPPED, shapes={"dense": {"bias": (4,), "kernel": (6, 5)}})
    assert refusal(tmp_path, other, transplant=True) == (
        "the checkpoint of step 40 in FOLDER has other parameters: "
        "params: dense/kernel is float32[6,4] in the checkpoint and float32[6,5] here"
    )
    like = jax.eval_shape(lambda: run_of(optax.trace(0.9)))
    assert "has nothing for 'opt_state/TraceState/trace/dense/bias': `like` must hold an array there" in refusal(
        tmp_path, like, transplant=True
    )
