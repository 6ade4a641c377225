"""A folder that one run writes at a time, and what the processes of a run must have in common.

A run holds a lock on its folder while it goes on. The lock is of the operating system, on the folder itself: it needs
no file, and a process that ends, however hard, leaves none behind. File systems without such locks are not guarded.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

# Seconds that a file needs at most to be seen by another host.
SEEN = 5.0
PACKAGE = pathlib.Path(__file__).parents[1]
_held: dict[tuple[int, int], int] = {}


@contextlib.contextmanager
def held(folder: str | pathlib.Path | None) -> Iterator[None]:
    """Holds a folder, which is made if it is not there; within one process several times over.

    Args:
      folder: where a run writes; None: nothing is held.

    Raises:
      BlockingIOError: another process holds it.

    Example:
      >>> with held("checkpoints-of-a-run"), held("checkpoints-of-a-run"):
      ...     pathlib.Path("checkpoints-of-a-run").rmdir()
    """
    if folder is None or os.name != "posix":
        yield
        return
    import fcntl

    path = pathlib.Path(folder)
    with contextlib.suppress(OSError):  # what cannot be made or opened is told of where it is written
        path.mkdir(parents=True, exist_ok=True)
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        known = os.fstat(opened)
        which = (known.st_dev, known.st_ino)
        if which not in _held:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise BlockingIOError(
                        f"the folder {path} is in use by another run: wait until it has ended, end it, or name another "
                        "folder"
                    ) from None
        _held[which] = _held.get(which, 0) + 1
        try:
            yield
        finally:
            _held[which] -= 1
            if not _held[which]:
                del _held[which]
    finally:
        os.close(opened)


@functools.cache
def code() -> str:
    """A digest of the code of this library.

    >>> len(code())
    16
    """
    whole = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        whole.update(f"{file.relative_to(PACKAGE)}\n".encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


def versions() -> dict[str, str]:
    """What a run is computed with."""
    beneath = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy")
    found = {name: importlib.metadata.version(name) for name in beneath}
    return {"the code of gradkit": code(), "the version of Python": platform.python_version()} | {
        f"the version of {name}": version for name, version in found.items()
    }


def of_file(where: str) -> str:
    """A digest of the file of a chain, `file.py` or `file.py:name`; empty where there is none."""
    path = pathlib.Path(where if where.endswith(".py") else where.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def settings(config: Any) -> dict[str, Any]:
    """The flags of a `TrainConfig` that all processes of a run have in common, and what is in the file of its chain."""
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    own.pop("process_id")
    chain = {} if config.chain is None else {"chain (what is in the file)": of_file(config.chain)}
    return own | chain


def _from_all(text: str) -> list[str]:
    """What every process says, by the number of the process."""
    from jax.experimental import multihost_utils

    own = np.frombuffer(text.encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.asarray(len(own), np.int32))))
    rows = np.asarray(multihost_utils.process_allgather(np.pad(own, (0, length - len(own)))))
    return [bytes(row).rstrip(b"\0").decode() for row in rows]


def agree(settings: Mapping[str, Any], folder: str | pathlib.Path | None = None) -> None:
    """Checks, before anything is compiled, that all processes of a run were started alike.

    Args:
      settings: the flags of this process that all must have in common, by their names.
      folder: where checkpoints are written; every process must see the same one.

    Raises:
      ValueError: they differ; the message names the flag, and what two processes have.
    """
    if jax.process_count() == 1:
        return
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        one, other = counts[0], next((i, n) for i, n in sorted(counts.items()) if n != counts[0])
        raise ValueError(
            f"--devices must be the same in all processes: process 0 has {one} devices, process {other[0]} has "
            f"{other[1]}; start all of them with the same flags"
        )
    own = {f"--{name}": value for name, value in settings.items()} | versions()
    said = [json.loads(text) for text in _from_all(json.dumps(own, sort_keys=True, default=repr))]
    for name in own:
        for number, theirs in enumerate(said):
            if theirs.get(name) != said[0].get(name):
                raise ValueError(
                    f"{name} must be the same in all processes: it is {said[0].get(name)!r} in process 0 and "
                    f"{theirs.get(name)!r} in process {number}; start all of them with the same flags and code"
                )
    if folder is not None:
        _same_folder(pathlib.Path(folder))


def _same_folder(folder: pathlib.Path) -> None:
    """Raises where a file that process 0 makes in a folder is not seen by another process."""
    name = ""
    if jax.process_index() == 0:
        name = f".seen-by-all-{os.getpid()}-{time.time_ns()}"
        with contextlib.suppress(OSError):  # told of where checkpoints are written
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    name = _from_all(name)[0]
    until = time.monotonic() + SEEN
    while not (seen := (folder / name).exists()) and time.monotonic() < until:
        time.sleep(0.05)
    blind = [i for i, text in enumerate(_from_all("yes" if seen else "no")) if text == "no"]
    if jax.process_index() == 0:
        (folder / name).unlink(missing_ok=True)
    if blind and blind != [*range(jax.process_count())]:
        raise ValueError(
            f"--checkpoint_dir={folder} must be one folder that all processes see: process {blind[0]} does not see "
            "what process 0 writes there; name a folder on a file system that all hosts have in common"
        )
