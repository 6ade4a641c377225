"""`Checkpoints` on a disk that fills up, in processes that are killed, and in several at once."""

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.training import Checkpoints, storage
from tests.contract.methods import same

ROOT = Path(__file__).parents[2]


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


def test_a_write_that_ends_after_the_loop_is_closed_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorStore calls back from a thread of its own; any other error in such a place is told as ever."""
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for _ in range(2):
        storage.hush()()
    loop = asyncio.new_event_loop()
    loop.close()
    for call in (lambda: loop.call_soon_threadsafe(print), lambda: [][0]):
        with pytest.raises((RuntimeError, IndexError)) as error:
            call()
        here = error.value.__traceback__
        frames = here and here.tb_next and here.tb_next.tb_next
        sys.unraisablehook(SimpleNamespace(exc_value=error.value, exc_traceback=frames, object=None))
    assert [type(one.exc_value) for one in told] == [IndexError]


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
    # A future whose error nobody asked for is logged when it is collected; those of tests before are, here.
    gc.collect()
    capfd.readouterr()
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
    with pytest.raises(
        OSError, match=r"the checkpoint of step 2 in .* could not be read: .*; valid: 1: restore one with step=1 "
    ):
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
    got: Any = None
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
