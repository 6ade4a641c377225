"""A problem from a folder of files: a byte-level language model on texts, or a classifier of arrays.

FOLDER/*.txt, *.md, …                        texts, also in folders below, joined in the order of their names
FOLDER/ANY.npz                               one file with arrays "images" and "labels"
FOLDER/images.npy, labels.npy                the same as two files
test_images, test_labels                     of either: the examples that are held out; without them, a tenth is
"""

import math
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.types import Scalar
from gradkit.workloads.bytelm import CONTEXT, LAYERS, WIDTH, Text, language_model, text_of
from gradkit.workloads.networks import MLP, apply, initializer, sample
from gradkit.workloads.workload import Workload

TEXTS = (".txt", ".md", ".rst", ".tex", ".html", ".py", ".json", ".jsonl", ".csv")
# The held-out twentieth then has a window for every place that is judged.
SHORTEST_TEXT = 10_000
FEWEST_EXAMPLES = 20
HELD_OUT_EXAMPLES = 2000
# Of the loss of the best constant prediction. That of the shipped language model is 0.56 of it.
TARGET_SHARE = 0.6


class Arrays(NamedTuple):
    """Images (n, ...) as they are in the file, labels (n,) from 0 to classes - 1."""

    train_images: np.ndarray
    train_labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray
    classes: int


def from_folder(
    folder: str | os.PathLike[str], *, target: Scalar | None = None, batch_size: int | None = None
) -> Workload:
    """A problem for races and training from files of one's own, as `--data=FOLDER` has it on the command line.

    A folder with arrays (.npz, .npy) is a problem of classification: images of any shape, or vectors, and a
    perceptron with two hidden layers of 256, whose metric is the loss on held-out examples. A folder of texts
    (.txt, .md, .rst, .tex, .html, .py, .json, .jsonl, .csv, also in folders below) is one of language: the transformer
    of the workload `bytelm` on their bytes, whose metric is the loss on their last twentieth. Arrays take precedence.

    Args:
      folder: of files; `images` and `labels` in one .npz or as two .npy files, and where there are some `test_images`
        and `test_labels`, which are then held out instead of a tenth. Images are numbers of any dtype, standardised
        over all training images; labels are integers from 0 on.
      target: the metric at which a run has arrived, > 0. Default None: 0.6 times the loss of the best constant
        prediction.
      batch_size: examples or windows in a minibatch, >= 1. Default None: 16 windows of text, 128 images.

    Returns:
      A `Workload`, named after the folder.

    Raises:
      ValueError: no such folder, no file of these kinds, a text that is too short, arrays that do not belong together.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "words.txt").write_text("to be or not to be " * 600)
      ...     mine = from_folder(folder, target=1.0)
      >>> mine.metric_name, mine.batch(jax.random.key(0)).shape
      ('held-out loss (nats per byte)', (16, 33))
    """
    checks.real("target", target, "(0, inf)", optional=True)
    checks.integer("batch_size", batch_size, 1, optional=True)
    root = pathlib.Path(folder)
    if not root.is_dir():
        what = "a file" if root.exists() else "not there"
        raise ValueError(f"data must be a folder of texts or arrays, got {str(folder)!r}, which is {what}")
    name = root.resolve().name or "data"
    arrays = sorted(file for ending in ("npz", "npy") for file in root.glob(f"*.{ending}"))
    if arrays:
        return _classifier(_read_arrays(arrays, root), name, target, batch_size)
    texts = sorted(
        file
        for file in root.rglob("*")
        if file.suffix.lower() in TEXTS and file.is_file() and not _hidden(file.relative_to(root))
    )
    if not texts:
        raise ValueError(
            f"data={folder} holds neither texts ({', '.join(TEXTS)}) nor arrays (one .npz with images and labels, or "
            "images.npy and labels.npy): put files of one of these kinds there"
        )
    raw = b"\n".join(file.read_bytes() for file in texts)
    if len(raw) < SHORTEST_TEXT:
        raise ValueError(
            f"data={folder} holds {len(raw)} bytes of text in {len(texts)} files, and a language model needs "
            f"{SHORTEST_TEXT} at least: add texts"
        )
    return _language(text_of(raw), name, len(raw), target, batch_size)


def _hidden(file: pathlib.PurePath) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _entropy(counts: Any) -> float:
    """The mean loss of the best constant prediction, in nats."""
    p = np.asarray(counts, np.float64) / np.sum(counts)
    return float(-np.sum(p[p > 0] * np.log(p[p > 0])))


def _language(text: Text, name: str, size: int, target: Scalar | None, batch_size: int | None) -> Workload:
    if text.vocabulary < 2:
        raise ValueError(f"data={name} must have two different bytes at least, got one: there is nothing to learn")
    batch = 16 if batch_size is None else batch_size
    counts = np.bincount(np.asarray(text.held_out), minlength=text.vocabulary)
    goal = TARGET_SHARE * _entropy(counts) if target is None else float(target)
    network = f"{LAYERS} scanned layers of width {WIDTH}, batch {batch} x {CONTEXT}"
    return language_model(text, name, f"{name}: {size} bytes of text, {network}", goal, batch_size=batch)


def _read_arrays(files: list[pathlib.Path], root: pathlib.Path) -> Arrays:
    """The arrays of a folder by their names, checked."""
    npz = [file for file in files if file.suffix == ".npz"]
    if len(npz) > 1 or (npz and len(files) > len(npz)):
        named = ", ".join(file.name for file in files)
        raise ValueError(f"data={root} must hold one .npz, or .npy files alone, got {named}")
    try:
        if npz:
            # NumPy leaves a file open that it cannot read.
            with npz[0].open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
        else:
            found = {file.stem: np.load(file, allow_pickle=False) for file in files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"data={root} has arrays that cannot be read, save them by np.savez: {error}") from error
    where = f"data={npz[0] if npz else root}"
    for name in ("images", "labels"):
        if name not in found:
            raise ValueError(f"{where} must have arrays images and labels, got {', '.join(found) or 'none'}")
    if ("test_images" in found) != ("test_labels" in found):
        raise ValueError(f"{where} must have both test_images and test_labels, or neither")
    images, labels = _pair(where, "", found)
    if len(labels) < FEWEST_EXAMPLES:
        raise ValueError(f"{where}: images must be {FEWEST_EXAMPLES} at least, got {len(labels)}")
    if "test_images" in found:
        held_out, held_out_labels = _pair(where, "test_", found)
        if held_out.shape[1:] != images.shape[1:] or not len(held_out):
            raise ValueError(
                f"{where}: test_images must be images of the shape {images.shape[1:]}, got {held_out.shape}"
            )
    else:
        order = np.random.default_rng(0).permutation(len(labels))
        rest, tenth = np.split(order, [len(order) - len(order) // 10])
        held_out, held_out_labels = images[tenth], labels[tenth]
        images, labels = images[rest], labels[rest]
    classes = 1 + int(max(labels.max(), held_out_labels.max()))
    if classes < 2:
        raise ValueError(f"{where}: labels must be of two classes at least, 0 and 1, got 0 alone")
    kept = np.random.default_rng(1).permutation(len(held_out_labels))[:HELD_OUT_EXAMPLES]
    return Arrays(images, labels, held_out[kept], held_out_labels[kept], classes)


def _pair(where: str, prefix: str, found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images with their labels, which must fit each other."""
    images, labels = found[f"{prefix}images"], found[f"{prefix}labels"]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{where}: {prefix}labels must be integers of shape (n,), got {labels.dtype} of shape {labels.shape}; "
            "write labels.argmax(-1) for vectors of ones and zeros"
        )
    if images.ndim < 2 or images.dtype.kind not in "fuib" or len(images) != len(labels) or not images.size:
        raise ValueError(
            f"{where}: {prefix}images must be numbers of shape ({len(labels)}, ...), one image for each label, got "
            f"{images.dtype} of shape {images.shape}"
        )
    if len(labels) and labels.min() < 0:
        raise ValueError(f"{where}: {prefix}labels must be classes from 0 on, got {labels.min()}")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise ValueError(f"{where}: {prefix}images must be finite, got NaN or infinity; leave these images out")
    return images if images.dtype == np.uint8 else images.astype(np.float32), labels.astype(np.int32)


def _classifier(data: Arrays, name: str, target: Scalar | None, batch_size: int | None) -> Workload:
    mean, deviation = float(data.train_images.mean(dtype=np.float64)), float(data.train_images.std(dtype=np.float64))
    if not deviation > 0:
        raise ValueError(f"data={name}: images must differ, got {mean:g} for every pixel")
    batch = min(128, len(data.train_labels)) if batch_size is None else batch_size
    train = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    held_out = jnp.asarray(data.held_out_images), jnp.asarray(data.held_out_labels)
    network = MLP((256, 256, data.classes))

    def logits(params: Any, images: jax.Array) -> jax.Array:
        x = (images.astype(jnp.float32) - mean) / deviation
        return apply(network, params, x.reshape(len(images), -1))

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()

    def predictions(batch: Any) -> tuple[Callable[[Any], jax.Array], jax.Array]:
        images, labels = batch
        return lambda params: logits(params, images), labels

    size = math.prod(data.train_images.shape[1:])
    goal = TARGET_SHARE * _entropy(np.bincount(data.held_out_labels)) if target is None else float(target)
    if goal <= 0:
        raise ValueError(f"data={name}: the held-out labels are all of one class: give target, or other test_labels")
    return Workload(
        name=name,
        description=f"{name}: {len(train[1])} examples, MLP {size}-256-256-{data.classes}, batch {batch}",
        init=initializer(network, jnp.zeros((1, size), jnp.float32), gain=2.0),
        batch=lambda key: sample(key, train, batch),
        loss=loss,
        metric=lambda params: loss(params, held_out),
        metric_name="held-out loss (nats)",
        target=goal,
        budget_steps=600,
        eval_every=20,
        separable=1.5,
        batch_size=batch,
        predictions=predictions,
    )
