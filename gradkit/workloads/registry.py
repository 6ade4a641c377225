"""The workloads by name."""

import functools
import inspect
from collections.abc import Callable

from gradkit import checks
from gradkit.checks import nearest
from gradkit.workloads.autoencoder import autoencoder, linear_autoencoder
from gradkit.workloads.bytelm import bytelm
from gradkit.workloads.digits_cnn import digits_cnn
from gradkit.workloads.digits_flow import digits_flow
from gradkit.workloads.digits_mlp import digits_mlp
from gradkit.workloads.heavytail import heavytail
from gradkit.workloads.multitask import multitask
from gradkit.workloads.multitask_six import multitask_six
from gradkit.workloads.sensing import sensing, sensing_1000
from gradkit.workloads.shapes import shapes
from gradkit.workloads.workload import Workload

_MAKERS: dict[str, Callable[..., Workload]] = {
    "digits_mlp": functools.partial(digits_mlp, "digits_mlp", 120, 5, batch_size=256),
    "digits_mlp_32": functools.partial(digits_mlp, "digits_mlp_32", 600, 10, batch_size=32),
    "digits_mlp_full": functools.partial(digits_mlp, "digits_mlp_full", 100, 5, batch_size=None),
    "digits_cnn": digits_cnn,
    "digits_flow": digits_flow,
    "shapes": shapes,
    "bytelm": bytelm,
    "autoencoder": autoencoder,
    "linear_autoencoder": linear_autoencoder,
    "heavytail": heavytail,
    "multitask": multitask,
    "multitask_six": multitask_six,
    "sensing": sensing,
    "sensing_1000": sensing_1000,
}

# What `gradkit race --suite=NAME` races on: language, images, a generative model, a badly conditioned network, tasks
# that compete, noise of infinite variance.
SUITES: dict[str, tuple[str, ...]] = {
    "six": ("bytelm", "shapes", "digits_flow", "autoencoder", "multitask", "heavytail")
}


def available() -> tuple[str, ...]:
    """The names of all workloads, the default one first.

    >>> available()[0]
    'digits_mlp'
    """
    return tuple(_MAKERS)


def check_name(name: str) -> None:
    """Refuses a name that no workload has, without loading any data.

    Raises:
      ValueError: the message offers the nearest names.

    >>> check_name("bytlem")
    Traceback (most recent call last):
    ValueError: no workload is called 'bytlem'; did you mean 'bytelm'?
    """
    if name not in _MAKERS:
        offer = nearest(name, _MAKERS) or f"; there are {', '.join(_MAKERS)}"
        raise ValueError(f"no workload is called {name!r}{offer}")


@functools.cache
def load(name: str, *, batch_size: int | None = None) -> Workload:
    """Builds a workload; its data is read or generated here, and nothing is downloaded.

    Args:
      name: one of `available()`.
      batch_size: examples per minibatch, >= 1. Default: the workload's own, for which its target was fixed.

    Raises:
      ValueError: no workload has this name, or a batch size for a workload whose batch has no examples to count.
      ImportError: the workload needs scikit-learn, which the extra `gradkit[race]` brings.

    Example:
      >>> import jax
      >>> problem = load("heavytail")
      >>> params = problem.init(jax.random.key(0))
      >>> float(problem.metric(params)), problem.target
      (1.0, 0.05)
    """
    check_name(name)
    checks.integer("batch_size", batch_size, 1, optional=True)
    if batch_size is None:
        return _MAKERS[name]()
    if "batch_size" not in inspect.signature(_MAKERS[name]).parameters:
        raise ValueError(f"batch_size must be None for the workload {name}, which has no batches, got {batch_size}")
    return _MAKERS[name](batch_size=batch_size)
