"""Handwritten digits of scikit-learn: 1,797 images of 8 x 8 pixels, ten classes, no download."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TRAIN_SIZE = 1437


class Digits(NamedTuple):
    """Images (n, 64) in [0, 1], labels (n,), split once and for all."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


@functools.cache
def load_digits() -> Digits:
    """The data, shuffled with a fixed seed: 1,437 images to train on and 360 to test on.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("the digits workloads need scikit-learn: pip install 'gradkit[race]'") from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16.0).astype(np.float32), labels[order].astype(np.int32)
    halves = (images[:TRAIN_SIZE], labels[:TRAIN_SIZE], images[TRAIN_SIZE:], labels[TRAIN_SIZE:])
    return Digits(*(jnp.asarray(half) for half in halves))
