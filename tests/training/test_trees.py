"""Parameters from presets and files, inspected and described without a loss and without an array."""

import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from gradkit.cli import main
from gradkit.training import inspect, trees

F32 = jnp.float32


def write(folder: Any, name: str, text: str) -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


def test_a_json_file_gives_shapes_dtypes_and_axis_names(tmp_path: Any) -> None:
    text = '{"a/up": {"shape": [4, 8, 6], "dtype": "bfloat16", "axes": ["layers", "embed", null]}, "a/norm": [8]}'
    tree = trees.find(write(tmp_path, "p.json", text))
    assert tree["a"]["norm"] == jax.ShapeDtypeStruct((8,), F32)
    assert isinstance(tree["a"]["up"], nn.LogicallyPartitioned)
    assert tree["a"]["up"].names == ("layers", "embed", None)
    assert tree["a"]["up"].value == jax.ShapeDtypeStruct((4, 8, 6), jnp.bfloat16)


def test_a_python_file_is_traced_and_not_run(tmp_path: Any) -> None:
    # 4 TB that no machine of a test has.
    text = "import jax\ndef params():\n    return {'w': jax.random.normal(jax.random.key(0), (10**6, 10**6))}"
    assert trees.find(write(tmp_path, "p.py", text)) == {"w": jax.ShapeDtypeStruct((10**6, 10**6), F32)}
    text = "import gradkit as gk\ndef mine():\n    return gk.workloads.model_shapes('gpt2-124m', dtype='bfloat16')"
    tree = trees.find(write(tmp_path, "q.py", text) + ":mine")
    assert tree["token_embed"]["embedding"].value == jax.ShapeDtypeStruct((50257, 768), jnp.bfloat16)
    assert trees.find("gpt2-124m")["token_embed"]["embedding"].names == ("vocab", "embed")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", '{"w": [8, 4}', "line 1: this is not JSON"),
        ("p.json", "[]", "must hold one object of names and shapes"),
        ("p.json", '{"w": 3}', "'w' must be a shape"),
        ("p.json", '{"w": [8, -4]}', "shape must be a list of whole numbers >= 0"),
        ("p.json", '{"w": {"shape": [8], "dtype": "flot32"}}', "dtype must be a name"),
        ("p.json", '{"w": {"shape": [8], "axis": ["a"]}}', "did you mean 'axes'"),
        ("p.json", '{"w": {"shape": [8], "axes": ["a", "b"]}}', "for each of its 1 axes"),
        ("p.json", '{"w": [8], "w/b": [8]}', "'w/b' is below another parameter"),
        ("p.json", '{"w/b": [8], "w": [8]}', "'w' is above another parameter"),
        ("p.py", "x = 1\ndef params():\n    return y", "p.py, line 3: NameError: name 'y' is not defined"),
        ("p.py", "def parms(): return {}", "did you mean 'parms'"),
        ("p.py", "def params(): return {}", "one array at least"),
        ("lama3-8b", None, "did you mean 'llama3-8b'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Any, name: str, text: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trees.find(name if text is None else write(tmp_path, name, text))


def test_adamw_holds_its_even_share_and_a_matrix_with_its_owner_does_not() -> None:
    params = {"w": jax.ShapeDtypeStruct((256, 128), F32), "v": jax.ShapeDtypeStruct((256, 128), F32)}
    found = inspect("adamw", params, mesh="fsdp=8")
    assert (found.leaves, found.distinct_shapes, found.collectives, found.routines) == (2, 1, {}, {})
    # Two moments; a counter and a published rate, which every device has.
    assert found.state_bytes == 2 * 2 * 256 * 128 * 4 / 8 + 8
    assert found.state_share_bytes == 2 * 2 * 256 * 128 * 4 / 8 + 2 * 1
    found = inspect("soap", params, mesh="fsdp=8")
    name, shape, here, even = found.largest_state[0]
    # Two matrices on eight devices: whoever has none has room for one.
    assert shape[0] == 8 and here == 4 * shape[1] * shape[2] and even == here / 4
    assert found.routines and "QR" not in name


def test_extra_arguments_are_samples_where_there_is_no_loss() -> None:
    params = {"w": jax.ShapeDtypeStruct((16, 8), F32)}
    for method in ("optax.sgd", gk.lion, optax.chain(optax.clip(1.0), optax.sgd(0.1)), "vr_adam", "nesterov"):
        assert inspect(method, params, mesh="data=2,fsdp=4").parameters == 128
    with pytest.raises(ValueError, match="sam is a source and asks for a loss"):
        inspect("sam", params, mesh="fsdp=8")
    with pytest.raises(ValueError, match="at most the 8 devices"):
        inspect("adamw", params, mesh="fsdp=16")
    with pytest.raises(ValueError, match="got none"):
        inspect("adamw", {}, mesh="fsdp=8")


def test_names_of_axes_decide_where_parameters_are_sharded_and_what_a_matrix_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    # By its shape alone, the first two axes of this leaf are the inputs of a tensor; by its names, the middle one is a
    # stack of layers, which no mesh axis shards.
    text = json.dumps({"q": {"shape": [16, 64, 8], "axes": ["embed", "layers", "heads"]}})
    file = write(tmp_path, "p.json", text)
    assert main(["gradkit", "inspect", "muon", f"--params={file}", "--mesh=fsdp=8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workload"] == "p.json" and found["parameter_bytes"] == 16 * 64 * 8 * 4 / 8
    assert found["largest_state"][0][1] == [16, 64, 8]
    assert main(["gradkit", "describe", "--method=muon", f"--params={file}"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:5] == ["q", "16x64x8", "matrix", "1", "muon"]
    assert main(["gradkit", "describe", "--model=gpt2-124m", "--params=p.json"]) == 2
    assert "model and params exclude each other" in capsys.readouterr().err


def test_a_preset_is_inspected_on_the_devices_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradkit", "inspect", "adamw", "--model=llama3-8b", "--mesh=data=2,fsdp=4"]) == 0
    out = capsys.readouterr().out
    assert "8,030,261,248 of llama3-8b in 12 arrays of 9 distinct shapes" in out
    # Float32 parameters over four devices; two moments of each, and 16 bytes.
    assert "parameters   8,030,261,248 bytes" in out and f"{2 * 8_030_261_248 + 8:,} bytes" in out
    assert "collectives  none" in out


def test_devices_that_a_stack_has_no_work_for_get_no_padding() -> None:
    """Four matrices that four devices hold shards of: along the other axis nothing is shared out or gathered."""
    four = {name: jax.ShapeDtypeStruct((256, 128), F32) for name in "abcd"}
    found = inspect("muon", four, mesh="data=2,fsdp=4")
    assert set(found.collectives) == {"all-to-all"}
    # There and back, each device sends three quarters of one matrix.
    assert found.collectives["all-to-all"]["wire_bytes"] == 2 * 3 / 4 * 256 * 128 * 4
    eight = {name: jax.ShapeDtypeStruct((256, 128), F32) for name in "abcdefgh"}
    assert "all-gather" in inspect("muon", eight, mesh="data=2,fsdp=4").collectives
