"""A checkpoint is whole or not there, comes back bit for bit on any mesh, and is refused where it does not belong."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
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

ROOT = Path(__file__).parents[2]
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
    batch = jnp.ones((4, 3))
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
    with pytest.raises(ValueError, match="has format 99, and this version of gradkit reads 1"):
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


# --- what goes wrong on disk -----------------------------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == () and checkpoints.latest() is None
        for step in (1, 9, 10, 11):
            checkpoints.save(step, {"params": jnp.full(3, step)})
        checkpoints.wait()
        assert checkpoints.steps() == (10, 11) and checkpoints.latest() == 11
        assert float(checkpoints.restore({"params": jnp.zeros(3, jnp.int32)}, step=10)[0]["params"][0]) == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "11"]


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"no checkpoints can be written in .*/file/inside: Not a directory$"):
        Checkpoints(tmp_path / "file" / "inside")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=r"no checkpoints can be written in .*: Read-only file system$"):
        Checkpoints(tmp_path)


@pytest.mark.parametrize("where", ["wait", "save", "close", "restore", "exit"])
@pytest.mark.parametrize("limit", [0, 1000], ids=["first file", "arrays"])
def test_a_full_disk_is_one_error_and_the_last_checkpoint_stays(
    limit: int, where: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """No file may grow above `limit` bytes: Orbax fails as on a full disk, in its own threads and TensorStore's."""
    state = {"params": jnp.asarray(np.random.default_rng(0).standard_normal((100, 100)), np.float32)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    how: dict[str, Callable[[], Any]] = {
        "wait": checkpoints.wait,
        "save": lambda: checkpoints.save(3, state),
        "close": checkpoints.close,
        "restore": lambda: checkpoints.restore(state),
        "exit": lambda: checkpoints.__exit__(None, None, None),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError) as error:
            checkpoints.save(2, state)
            how[where]()
        checkpoints.close()  # said once
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    text = f"the checkpoint of step 2 in {tmp_path} could not be written: File too large; valid: 1"
    assert str(error.value) == text and error.value.__cause__ is None
    assert checkpoints.steps() == (1,)
    same(checkpoints.restore(state)[0], state)
    with checkpoints:
        checkpoints.save(2, state)  # there is room again
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orbax.checkpoint as ocp

    async def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "nothing left")

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", full)
    with pytest.raises(ZeroDivisionError) as error, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, {"params": jnp.ones(3)})
        raise ZeroDivisionError
    said = [f"the checkpoint of step 2 in {tmp_path} could not be written: No space left on device"]
    assert error.value.__notes__ == said


def test_a_damaged_checkpoint_names_those_that_are_left(tmp_path: Path) -> None:
    state = {"params": jnp.arange(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
    for file in (tmp_path / "2" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:7])
    with pytest.raises(OSError, match=r"the checkpoint of step 2 in .* could not be read: .*; valid: 1$"):
        checkpoints.restore(state)
    same(checkpoints.restore(state, step=1)[0], state)


def child(code: str, *arguments: Any) -> subprocess.Popen:
    head = "import os, signal, sys, pathlib, shutil\nimport jax, jax.numpy as jnp, numpy as np\n"
    head += "from gradkit.training import Checkpoints\nimport gradkit.training.checkpoints as module\n"
    head += "def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\n"
    head += "def state(step): return {'params': jnp.full((1000, 500), step) + jnp.arange(500.0).reshape(1, 500)}\n"
    command = [sys.executable, "-W", "error", "-c", head + code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("", (1, 2)),  # while the arrays are written
        ("import orbax.checkpoint as o; o.JsonCheckpointHandler.finalize = die\n", (1, 2)),
        ("pathlib.Path.rename = die\n", (1, 2, 3)),  # before what is no longer kept is deleted
        ("shutil.rmtree = die\n", (2, 3)),  # in the middle of deleting it
    ],
    ids=["writing", "finishing", "renaming", "deleting"],
)
def test_killed_in_the_middle(moment: str, left: tuple[int, ...], tmp_path: Path) -> None:
    code = "c = Checkpoints(sys.argv[1], keep=2)\nfor i in (1, 2): c.save(i, state(i))\nc.wait()\n"
    end = "c.save(3, state(3))\n" + ("c.wait()\n" if moment else "die()\n")
    process = child(code + moment + end, tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and (out, err) == ("", "")
    assert any(not entry.name.isdigit() for entry in tmp_path.iterdir()) == (left != (1, 2, 3))

    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps() == left
    ramp = np.arange(500, dtype=np.float32).reshape(1, 500)
    for step in left:
        got, _ = checkpoints.restore({"params": jnp.zeros((1000, 500))}, step=step)
        np.testing.assert_array_equal(got["params"], np.full((1000, 1), step, np.float32) + ramp)
    with checkpoints:
        checkpoints.save(4, got)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [str(left[-1]), "4"]


@pytest.mark.slow
def test_two_processes_share_a_checkpoint(tmp_path: Path) -> None:
    """Leaves cut over both, whole on each, and bound to none; read onto other cuts, and by one process alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    code = """
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
x = np.arange(32, dtype=np.float32).reshape(8, 4)
put = lambda x, *spec: jax.make_array_from_callback(x.shape, NamedSharding(mesh, P(*spec)), lambda i: x[i])
key = jax.jit(lambda: jax.random.key(3), out_shardings=NamedSharding(mesh, P()))()
tree = lambda x, *specs: {"params": [put(x, *spec) for spec in specs], "step": jnp.int32(4), "key": key}
with Checkpoints(sys.argv[1], keep=2) as c:
    for i in range(4):
        c.save(i, tree(x, ("data",), ()))
    like = tree(0 * x, (None, "data"), ("data",))
    got, report = c.restore(like)
for a, b in zip(got["params"], like["params"]):
    assert a.sharding == b.sharding and report.step == 3
    for shard in a.addressable_shards:
        np.testing.assert_array_equal(shard.data, x[shard.index])
assert int(got["step"]) == 4 and jax.random.key_data(got["key"]).addressable_data(0).tolist() == [0, 3]
"""
    processes = [child(code, tmp_path, address, rank) for rank in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, out + err
    whole = jnp.arange(32.0).reshape(8, 4)
    state = {"params": [whole, whole], "step": jnp.int32(4), "key": jax.random.key(3)}
    same(Checkpoints(tmp_path).restore(jax.eval_shape(lambda: state))[0], state)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.slow
def test_orbax_is_imported_by_the_first_checkpoint_only(tmp_path: Path) -> None:
    process = child(
        "assert not [m for m in sys.modules if 'orbax' in m]\nprint(Checkpoints(sys.argv[1]).steps())", tmp_path
    )
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("()\n", "", 0)
