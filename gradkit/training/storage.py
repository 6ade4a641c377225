"""What checkpoints ask of Orbax: where an array is read to, what went wrong in few words, and silence."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.training import digests

TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax's own suffix of what is not whole


@functools.cache
def note_kind() -> tuple[Any, Any]:
    """The handler of a JSON file whose text is made when it is written, beside the arrays, and what Orbax calls its
    arguments: a class with a function that makes the text."""
    import orbax.checkpoint as ocp

    class Handler(ocp.JsonCheckpointHandler):
        async def _save_fn(self, x: Callable[[], Any], directory: Any) -> None:
            await super()._save_fn(x(), directory)

    @ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
    @dataclasses.dataclass
    class Save(ocp.args.CheckpointArgs):
        item: Callable[[], Any]

    return Handler, Save


def handler() -> Any:
    """The two items of a checkpoint: arrays, and a JSON file."""
    import orbax.checkpoint as ocp

    state, about = ocp.PyTreeCheckpointHandler(), note_kind()[0]("about.json")
    return ocp.CompositeCheckpointHandler(state=state, about=about)


def delete(folder: pathlib.Path) -> None:
    """Deletes the folder of a checkpoint; of one that is a link to a folder elsewhere, the link alone."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def is_key(x: Any) -> bool:
    """Whether a leaf holds typed random keys, of which the bits are stored."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def sharding(x: Any) -> Any:
    """Where a leaf is bound to; None where it may go anywhere, as a new array may."""
    return getattr(x, "sharding", None) if getattr(x, "committed", True) else None


def read(folder: pathlib.Path, places: dict[str, Any], wanted_digests: dict[str, str]) -> dict[str, Any]:
    """The arrays of a checkpoint that have these names, each bound to where the leaf beside it is, shard by shard.

    Raises:
      OSError: an array does not have the digest of what was saved.
    """
    import orbax.checkpoint as ocp

    shapes = {name: jax.eval_shape(jax.random.key_data, x) if is_key(x) else x for name, x in places.items()}
    arrays = {name: _nothing(x, sharding(places[name])) for name, x in shapes.items() if 0 in x.shape}
    shapes = {name: x for name, x in shapes.items() if name not in arrays}
    if not shapes:
        return arrays
    how = {
        name: ocp.RestoreArgs(restore_type=np.ndarray)
        if (place := sharding(places[name])) is None
        else ocp.ArrayRestoreArgs(sharding=place, global_shape=x.shape, dtype=x.dtype)
        for name, x in shapes.items()
    }
    wanted = ocp.args.PyTreeRestore(item=shapes, restore_args=how, partial_restore=True)
    with contextlib.ExitStack() as stack:
        stack.callback(hush())
        reader = stack.enter_context(ocp.Checkpointer(handler()))
        found = reader.restore(folder, args=ocp.args.Composite(state=wanted))["state"]
    digests.check(found, wanted_digests)
    return arrays | found


def _nothing(x: Any, place: Any) -> Any:
    """An array without entries."""
    array = np.zeros(x.shape, x.dtype)
    return array if place is None else jax.make_array_from_callback(x.shape, place, lambda index: array[index])


def like(array: Any, x: Any, copy: bool) -> Any:
    """What was read, as an array of the kind of x; `copy`: as one of its own."""
    if isinstance(x, np.ndarray | np.generic):
        return np.array(array)
    place = sharding(x)
    if place is None or copy:
        array = jnp.array(array, copy=True)
    if is_key(x):
        # Only under a trace does an abstract key tell which generator it is of.
        kinds: list[Any] = []
        jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), x)
        array = jax.random.wrap_key_data(array, impl=kinds[0])
    return array if place is None or not copy else jax.device_put(array, place)


def reason(error: BaseException) -> tuple[str, bool]:
    """What went wrong in few words, and whether they are the operating system's."""
    text = " ".join((str(error) or type(error).__name__).split())
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os_error_code='(\d+)'", text)):
        number = int(found[1])
    if number is not None:
        return os.strerror(number), True
    if "[tensorstore_spec" in text:
        # TensorStore names the array, and last what it found; between them are the places on disk.
        array = re.search(r'"([^"]*?)/?(?:\.zarray|zarr\.json|[\d.]+)" in OCDBT', text)
        found = re.sub(r"^.*: (?=[^:]+(: expected|$))", "", text[: text.index(" [tensorstore_spec")])
        return f"its files are damaged: {f'array {array[1]!r}, ' if array else ''}{found[:200]}", True
    if not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}"
    return (text if len(text) <= 300 else f"{text[:297]}..."), False


def hush() -> Callable[[], None]:
    """Keeps what Orbax logs off the terminal, until what this returns is called: what matters in it is raised."""

    def foreign(record: logging.LogRecord) -> bool:
        trace = record.exc_info[2] if record.exc_info else None
        if record.exc_info and "[tensorstore_spec" in str(record.exc_info[1]):
            return False
        files = [record.pathname, *(frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))]
        return not any("orbax" in pathlib.PurePath(file).parts for file in files)

    if not isinstance(sys.unraisablehook, _PassOverClosedLoops):
        sys.unraisablehook = _PassOverClosedLoops(sys.unraisablehook)
    # asyncio tells of futures that failed and nobody asked.
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(foreign)

    def speak() -> None:
        for logger in loggers:
            logger.removeFilter(foreign)

    return speak


class _PassOverClosedLoops:
    """Keeps one message off the terminal: a write that TensorStore gives up after the first error of a checkpoint may
    end when Orbax' event loop is closed, at any later time, in a thread of TensorStore's own."""

    def __init__(self, others: Callable[[Any], Any]) -> None:
        self.others = others

    def __call__(self, unraisable: Any) -> None:
        late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
        files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(unraisable.exc_traceback))
        if not (late and all("asyncio" in pathlib.PurePath(file).parts for file in files)):
            self.others(unraisable)
