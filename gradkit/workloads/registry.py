"""The workloads by name."""

import functools
from collections.abc import Callable

from gradkit.checks import nearest
from gradkit.workloads.autoencoder import autoencoder
from gradkit.workloads.bytelm import bytelm
from gradkit.workloads.digits_cnn import digits_cnn
from gradkit.workloads.digits_mlp import digits_mlp
from gradkit.workloads.heavytail import heavytail
from gradkit.workloads.multitask import multitask
from gradkit.workloads.sensing import sensing
from gradkit.workloads.workload import Workload

_MAKERS: dict[str, Callable[[], Workload]] = {
    "digits_mlp": functools.partial(digits_mlp, "digits_mlp", 256, 120, 5),
    "digits_mlp_32": functools.partial(digits_mlp, "digits_mlp_32", 32, 600, 10),
    "digits_mlp_full": functools.partial(digits_mlp, "digits_mlp_full", None, 100, 5),
    "digits_cnn": digits_cnn,
    "bytelm": bytelm,
    "autoencoder": autoencoder,
    "heavytail": heavytail,
    "multitask": multitask,
    "sensing": sensing,
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
def load(name: str) -> Workload:
    """Builds a workload; its data is read or generated here, and nothing is downloaded.

    Args:
      name: one of `available()`.

    Raises:
      ValueError: no workload has this name.
      ImportError: the workload needs scikit-learn, which the extra `gradkit[race]` brings.

    Example:
      >>> import jax
      >>> problem = load("heavytail")
      >>> params = problem.init(jax.random.key(0))
      >>> float(problem.metric(params)), problem.target
      (1.0, 0.05)
    """
    check_name(name)
    return _MAKERS[name]()
