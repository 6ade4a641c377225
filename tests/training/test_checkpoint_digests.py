"""A checkpoint whose files were changed is refused, by the name of the array, on any mesh; nothing is deleted."""

import itertools
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.cli import main
from gradkit.training import Checkpoints, digests
from tests.contract.methods import same

DTYPES = [np.float32, np.float64, np.int8, np.bool_, np.complex64, np.complex128]
DTYPES += [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4]


def drawn(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).integers(-3, 4, shape), np.int8).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(7,), (4, 5, 6), (5000, 3), (3, 9001), (600, 1000), (600_000,), ()], ids=str)
def test_the_digests_of_shards_add_up(shape: tuple[int, ...], dtype: Any) -> None:
    """Shards along any axis, on either side of the sizes at which an array is digested in parts."""
    x = drawn(shape, dtype)
    whole = digests.digest(x)
    for axis, length in enumerate(shape):
        for at in {1, length // 2, length - 1}:
            start = tuple(at if a == axis else 0 for a in range(x.ndim))
            parts = x.take(range(at), axis), x.take(range(at, length), axis)
            assert (digests.digest(parts[0]) + digests.digest(parts[1], start)) % 2**64 == whole
    if shape:
        assert digests.digest(x[::-1]) != whole
        assert digests.digest(np.swapaxes(x, 0, -1)) != whole or x.ndim == 1
    assert digests.digest(x.copy()) == whole and digests.digest(np.zeros((0, 3), dtype)) == 0


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda d: np.dtype(d).name)
def test_words_are_weighed_one_by_one(dtype: Any) -> None:
    """The digest is the sum of the digests of arrays that are zero but for one item, wherever that is in its word."""
    x = drawn((3, 11), dtype)
    alone = [np.where(np.arange(x.size).reshape(x.shape) == i, x, np.zeros((), dtype)) for i in range(x.size)]
    assert sum(map(digests.digest, alone)) % 2**64 == digests.digest(x)
    long = drawn((5000,), dtype)  # many words at a time, of which here one is left
    one = np.where(np.arange(5000) == 4999, long + np.ones((), dtype), np.zeros((), dtype))
    assert digests.digest(one) == digests.digest(one[-1:], (4999,)) != 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.int8], ids=lambda d: np.dtype(d).name)
def test_every_bit_of_every_item_counts(dtype: Any) -> None:
    """One bit, and the highest bits of two items together, which a sum of products modulo 2^32 would not see."""
    x = drawn((3, 5), dtype)
    whole, size = digests.digest(x), x.itemsize
    raw = np.frombuffer(x.tobytes(), np.uint8)

    def changed(*bits: tuple[int, int]) -> int:
        bad = raw.copy()
        for byte, bit in bits:
            bad[byte] ^= 1 << bit
        return digests.digest(bad.view(dtype).reshape(x.shape))

    assert all(changed((byte, bit)) != whole for byte in range(raw.size) for bit in range(8))
    tops = range(size - 1, raw.size, size)
    assert all(changed((a, 7), (b, 7)) != whole for a, b in itertools.combinations(tops, 2))


def largest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def state_of(step: int) -> dict[str, Any]:
    # Random bits, which no compression makes smaller: what is stored of them has no checksum of its own.
    w = np.random.default_rng(step).integers(0, 2**32, (80, 128), np.uint32).view(np.float32)
    return {"params": {"w": jnp.asarray(w), "b": jnp.full(4, step)}, "step": jnp.int32(step)}


def written(folder: Path, *steps: int) -> Checkpoints:
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), about={"seed": 0})
    return Checkpoints(folder)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_flipped_byte_is_refused_by_the_name_of_the_array_on_any_mesh(tmp_path: Path) -> None:
    checkpoints, state = written(tmp_path, 1, 2), state_of(2)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    sharded = {
        **state,
        "params": {**state["params"], "w": jax.device_put(state["params"]["w"], NamedSharding(mesh, P("b", "a")))},
    }
    file = largest(tmp_path / "2" / "state")
    good = file.read_bytes()
    for i, at in enumerate(np.linspace(2000, len(good) - 2000, 12).astype(int)):
        bad = bytearray(good)
        bad[at] ^= 1 << i % 8
        file.write_bytes(bytes(bad))
        before = everything(tmp_path)
        with pytest.raises(OSError) as error:
            checkpoints.restore([state, sharded, jax.eval_shape(lambda: state)][i % 3])
        text = str(error.value)
        assert text.startswith(f"the checkpoint of step 2 in {tmp_path} could not be read: its files were changed")
        assert "array 'params/w'" in text and "params/b" not in text
        assert text.endswith("valid: 1: restore one with step=1 (--restore_step=1); nothing was deleted")
        assert everything(tmp_path) == before
    file.write_bytes(good)
    same(checkpoints.restore(sharded)[0], state)
    same(checkpoints.restore(state, step=1)[0], state_of(1))


def test_arrays_are_digested_as_they_were_when_the_save_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their buffers are given to the next step while the digests, which are slow here, are still being taken."""
    quick, go = digests._sum_of_block, threading.Event()
    monkeypatch.setattr(digests, "_sum_of_block", lambda block: (go.wait(60), quick(block))[1])
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = step(jnp.zeros((300, 300)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x})
        x = jax.block_until_ready(step(x))
        go.set()
        checkpoints.wait()
        restored, _ = checkpoints.restore({"x": x})
    same((restored, x), ({"x": jnp.ones((300, 300))}, jnp.full((300, 300), 2.0)))


def test_the_files_of_another_step_are_refused(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    with pytest.raises(OSError, match=r"of step 3 in .* it is the checkpoint of step 1, in a folder of another name"):
        checkpoints.restore(state_of(0))
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(tmp_path / "1" / "state", tmp_path / "2" / "state")
    with pytest.raises(OSError, match=r"array 'params/b' .*array 'params/w'.*array 'step'"):
        checkpoints.restore(state_of(0), step=2)


@pytest.mark.parametrize("value", [None, 7, [], "text", {}], ids=repr)
def test_an_about_file_that_was_changed_is_one_message(value: Any, tmp_path: Path) -> None:
    """Any of its entries, all of it, an entry more or less; text that is no JSON."""
    checkpoints = written(tmp_path, 1)
    file = tmp_path / "1" / "about" / "about.json"
    note = json.loads(file.read_text())
    others = [{**note, key: value} for key in note] + [value, {**note, "more": value}]
    others += [{key: x for key, x in note.items() if key != gone} for gone in note]
    for other in others:
        file.write_text(json.dumps(other))
        if other == note or (isinstance(other, dict) and other.get("format") == 7):
            continue  # unchanged, or of another version of this library
        # What restores reads the note the same way, and takes longer.
        restores = (lambda: checkpoints.restore(state_of(1)),) if other == value else ()
        for read in (checkpoints.about, *restores):
            with pytest.raises(OSError, match=r"could not be read: about\.json was changed after it was written"):
                read()
    file.write_bytes(b"\xff{")
    with pytest.raises(OSError, match=r"about\.json is no JSON any more"):
        checkpoints.about()


def test_a_run_goes_on_from_an_earlier_step(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The newest checkpoint is damaged: the run is refused, and with --restore_step ends as if nothing had been."""
    common = ["gradkit", "train", "--workload=heavytail", "--method=lion", f"--checkpoint_dir={tmp_path}"]
    assert main([*common, "--steps=60"]) == 0
    good = json.loads((tmp_path / "60" / "about" / "about.json").read_text())["digests"]
    shutil.rmtree(tmp_path / "60" / "state")
    shutil.copytree(tmp_path / "40" / "state", tmp_path / "60" / "state")
    capsys.readouterr()
    assert main([*common, "--steps=60"]) == 2
    said = capsys.readouterr().err
    assert "step 60" in said and "--restore_step=40" in said and said.count("\n") == 1
    assert main([*common, "--steps=60", "--restore_step=40"]) == 0
    assert "later checkpoints are kept as 60.set-aside" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["20", "40", "60", "60.set-aside"]
    assert json.loads((tmp_path / "60" / "about" / "about.json").read_text())["digests"] == good
    assert main([*common, "--restore_step=30"]) == 2
    assert "it must be one of the evaluations" in capsys.readouterr().err
    assert main([*common[:-1], "--restore_step=30"]) == 2
    assert "give checkpoint_dir as well" in capsys.readouterr().err


def test_rows_of_stacks_are_digested_before_they_are_dealt_out(tmp_path: Path) -> None:
    """State that is stacked by owner device on one mesh, and read on another."""
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
    params = {str(i): jnp.ones((64, 40)) for i in range(3)}
    states = []
    for devices in (mesh, jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])):
        tx = gk.soap(0.1, shard=gk.MatrixSharding(devices, "fsdp"))
        states.append({"params": params, "opt_state": tx.init(params)})
    noise = np.random.default_rng(0)
    filled = jax.tree.map(
        lambda x: jax.device_put(noise.standard_normal(x.shape).astype(x.dtype), x.sharding), states[0]["opt_state"]
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": params, "opt_state": filled})
    checkpoints.restore(states[1])
    file = largest(tmp_path / "1" / "state")
    bad = bytearray(file.read_bytes())
    bad[len(bad) // 2] ^= 16
    file.write_bytes(bytes(bad))
    with pytest.raises(OSError, match=r"array 'opt_state/.*' \(digest"):
        Checkpoints(tmp_path).restore(states[1])
