"""A folder of files as a problem: what is read, what is held out, what is refused, and the commands that take it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.cli import main
from gradkit.workloads import from_folder

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


def arrays(n=40, classes=3, dtype=np.uint8):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (n, 4, 5)).astype(dtype)
    return {"images": images, "labels": np.arange(n) % classes}


def save(folder, **changes):
    given = {**arrays(), **changes}
    np.savez(folder / "data.npz", **{name: x for name, x in given.items() if x is not None})


def entropy(values):
    p = np.bincount(values) / len(values)
    return -np.sum(p[p > 0] * np.log(p[p > 0]))


def test_texts_are_joined_in_the_order_of_their_names_and_their_end_is_held_out(tmp_path):
    random = np.random.default_rng(0)
    first, second = (bytes(random.choice(list(letters), 8000).astype(np.uint8)) for letters in (b"ab", b"abcd"))
    (tmp_path / "below" / ".hidden").mkdir(parents=True)
    (tmp_path / "below" / "b.md").write_bytes(second)
    (tmp_path / "a.TXT").write_bytes(first)
    (tmp_path / "below" / ".hidden" / "c.txt").write_bytes(b"z" * 9000)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    problem = from_folder(tmp_path)
    whole = np.frombuffer(first + b"\n" + second, np.uint8)
    held_out = whole[len(whole) * 95 // 100 :]
    assert problem.name == tmp_path.name and "16001 bytes" in problem.description
    assert problem.target == pytest.approx(0.6 * entropy(held_out))
    # Five different bytes; their order is that of their values.
    batch = np.asarray(jax.jit(problem.batch)(KEY))
    assert batch.shape == (16, 33) and batch.dtype == np.int32
    train = np.searchsorted(np.frombuffer(b"\nabcd", np.uint8), whole[: -len(held_out)]).astype(np.uint8).tobytes()
    assert all(window.astype(np.uint8).tobytes() in train for window in batch)
    embedding = jax.eval_shape(problem.init, KEY)["tokens"]["embedding"]
    assert embedding.shape == (5, 64)


def test_images_are_standardised_whatever_their_dtype_and_a_tenth_is_held_out(tmp_path):
    losses, problem = [], None
    for i, images in enumerate((arrays()["images"], arrays()["images"] / 255.0, arrays()["images"].astype(np.int64))):
        folder = tmp_path / str(i)
        folder.mkdir()
        np.save(folder / "images.npy", images)
        np.save(folder / "labels.npy", arrays()["labels"])
        problem = from_folder(folder, batch_size=7)
        losses.append(float(problem.metric(problem.init(KEY))))
        assert problem.batch(KEY)[0].shape == (7, 4, 5) and problem.batch_size == 7
    # A float32 loss of order one, from inputs that were rounded in another way.
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    order = np.random.default_rng(0).permutation(40)
    assert problem is not None and problem.target == pytest.approx(0.6 * entropy(arrays()["labels"][order[36:]]))

    # Against NumPy, from the first parameters.
    images = arrays()["images"]
    train, held_out = images[order[:36]].astype(np.float64), images[order[36:]].astype(np.float64)
    x = ((held_out - train.mean()) / train.std()).reshape(4, -1)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), problem.init(KEY))
    for i in range(3):
        x = (np.maximum(x, 0) if i else x) @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
    labels = arrays()["labels"][order[36:]]
    expected = np.mean(np.log(np.exp(x).sum(-1)) - x[np.arange(4), labels])
    np.testing.assert_allclose(losses[0], expected, rtol=2e-5)


def test_test_images_are_held_out_where_there_are_some(tmp_path):
    more = {"test_images": np.zeros((3, 4, 5), np.uint8), "test_labels": np.array([0, 1, 3])}
    save(tmp_path, **more)
    problem = from_folder(tmp_path, target=0.25)
    assert problem.target == 0.25 and "40 examples, MLP 20-256-256-4" in problem.description
    params = problem.init(KEY)
    held_out = jnp.zeros((3, 4, 5), jnp.uint8), jnp.array([0, 1, 3], jnp.int32)
    assert float(problem.metric(params)) == float(problem.loss(params, held_out))


ONE = np.ones((40, 4, 5), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "must have arrays images and labels, got images"),
        ({"labels": np.eye(40)}, r"labels must be integers of shape \(n,\), got float64 of shape \(40, 40\)"),
        ({"labels": np.arange(39)}, r"images must be numbers of shape \(39, ...\)"),
        ({"labels": np.arange(40) - 1}, "labels must be classes from 0 on, got -1"),
        ({"labels": np.zeros(40, int)}, "labels must be of two classes at least"),
        ({"images": ONE * np.nan}, "images must be finite"),
        ({"images": ONE}, "images must differ, got 1 for every pixel"),
        ({"images": np.array(["a"] * 40)}, "images must be numbers"),
        ({"images": np.array([{}] * 40, object)}, "cannot be read"),
        ({"images": ONE[:3], "labels": np.arange(3)}, "images must be 20 at least, got 3"),
        ({"test_images": ONE}, "must have both test_images and test_labels"),
        (
            {"test_images": ONE[:, :2], "test_labels": np.arange(40)},
            r"test_images must be images of the shape \(4, 5\)",
        ),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(tmp_path, changes, message):
    save(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        from_folder(tmp_path)


def test_folders_without_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data must be a folder of texts or arrays, got .* not there"):
        from_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds neither texts \(.txt, .*\) nor arrays"):
        from_folder(tmp_path)
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match="holds 5 bytes of text in 1 files, and a language model needs 10000"):
        from_folder(tmp_path)
    with pytest.raises(ValueError, match="which is a file"):
        from_folder(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("a" * 20_000)
    with pytest.raises(ValueError, match="two different bytes"):
        from_folder(tmp_path)
    with pytest.raises(ValueError, match="target must be in"):
        from_folder(tmp_path, target=0.0)
    save(tmp_path)
    np.save(tmp_path / "more.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"must hold one \.npz, or \.npy files alone, got data\.npz, more\.npy"):
        from_folder(tmp_path)
    (tmp_path / "more.npy").unlink()
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match="cannot be read"):
        from_folder(tmp_path)


def test_the_commands_take_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    save(tmp_path / "mine")
    train = ["train", "--data=mine", "--method=sgd", "--steps=40", "--global_batch=8", "--metrics_file=run.jsonl"]
    assert main(["gradkit", *train, "--target=100"]) == 0
    assert "mine: 36 examples, MLP 20-256-256-3, batch 8" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [20, 40]
    assert main(["gradkit", "inspect", "sgd", "--data=mine", "--mesh=data=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workload"] == "mine" and found["parameters"] == 20 * 256 + 256 + 256 * 256 + 256 + 256 * 3 + 3
    assert main(["gradkit", "describe", "--data=mine", "--method=sgd"]) == 0
    assert "20x256" in capsys.readouterr().out
    tiny = ["--rates=2", "--seeds=1", "--steps=20", "--extensions=0", "--timing_rounds=1"]
    assert main(["gradkit", "race", "--data=mine", "--methods=sgd", *tiny]) == 0
    assert "mine: held-out loss (nats) <= " in capsys.readouterr().out
    for arguments, message in (
        (["race", "--data=nowhere"], "data must be a folder"),
        (["train", "--data=nowhere"], "data must be a folder"),
        (["race", "--data=mine", "--problem=a.py"], "data and problem exclude each other"),
        (["train", "--target=1"], "target must be left out without data"),
        (["inspect", "sgd", "--data=mine", "--workload=bytelm"], "workload and data exclude each other"),
    ):
        assert main(["gradkit", *arguments]) == 2
        assert message in capsys.readouterr().err
