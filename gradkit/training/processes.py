"""The devices and the processes of a run, and what is said where one of the processes is lost.

A run over several processes is the same command on every host, with the same `coordinator` and `num_processes` and
a `process_id` of its own. JAX ends every process within the heartbeat once one of them is gone: a collective that a
dead process takes part in never returns.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gradkit.training import held

# Told by the signal that the run ended itself with; printed once the run, and what it had to say, is over.
_WATCHER = """
import os, sys
told = b""
while part := os.read(0, 64):
    told += part
if bytes([int(sys.argv[1])]) in told:
    print(sys.argv[2], file=sys.stderr, flush=True)
"""


def virtual_devices(count: int) -> None:
    """Splits the CPU into several devices, to try out a mesh without having one.

    Args:
      count: how many devices this process gets.

    Raises:
      ValueError: JAX has already looked at its devices.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)  # refused once there are devices; the next line is not
    except RuntimeError as error:
        raise ValueError(f"devices={count} must be set before JAX looks at its devices: {error}") from error
    jax.config.update("jax_platforms", "cpu")


@contextlib.contextmanager
def of_run(config: Any, folder: str | None) -> Iterator[None]:
    """Holds the folder that a run of `TrainConfig` writes, and joins its processes, which must be started alike."""
    with contextlib.ExitStack() as stack:
        if config.coordinator is None or config.process_id == 0:
            stack.enter_context(held.held(folder))
        if config.coordinator is not None:
            agree = functools.partial(held.agree, held.settings(config), folder)
            who = (config.num_processes, config.process_id, config.heartbeat)
            stack.enter_context(joined(config.coordinator, *who, agree))
        yield


@contextlib.contextmanager
def joined(
    coordinator: str,
    num_processes: int | None,
    process_id: int | None,
    heartbeat: int,
    agree: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Joins the processes of a run, and leaves them together.

    Args:
      coordinator: host:port of process 0, the same in every process; "auto" where the cluster (a TPU pod, SLURM, MPI)
        tells each process who it is.
      num_processes: how many processes there are.
      process_id: which one this is, from 0.
      heartbeat: seconds after which a silent process counts as lost, and the others end; so long a process waits for
        the others as well where it joins them and where it leaves.
      agree: called as soon as all have joined; what it raises as a `ValueError`, it raises in all of them.

    Raises:
      BlockingIOError: on this machine the same process of the same run is under way already.
      ConnectionError: not all processes came in time, or one was lost.
    """
    with _once(coordinator, process_id):
        yield from _together(coordinator, num_processes, process_id, heartbeat, agree)


@contextlib.contextmanager
def _once(coordinator: str, process_id: int | None) -> Iterator[None]:
    """Refuses the same command twice on one machine: the second would join the run of the first, and end it."""
    if coordinator == "auto":
        yield
        return
    name = hashlib.sha256(f"{coordinator} {process_id}".encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held.held(pathlib.Path(tempfile.gettempdir()) / f"gradkit-process-{name}"))
        except BlockingIOError:
            raise BlockingIOError(
                f"process {process_id} of the run at {coordinator} is under way on this machine already: wait until it "
                "has ended, end it, or name another port"
            ) from None
        yield


def ended(status: int) -> int:
    """The exit status of a command that failed. Of several processes one that failed ends here and at once: JAX would
    have it wait for the others, which wait for it."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # pyright: ignore[reportPrivateUsage]
    return status


def _together(
    coordinator: str,
    num_processes: int | None,
    process_id: int | None,
    heartbeat: int,
    agree: Callable[[], None],
) -> Iterator[None]:
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=heartbeat,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except RuntimeError as error:
        raise ConnectionError(f"process {process_id} could not join {coordinator}: {error}") from error
    try:
        agree()
    except ValueError:
        jax.distributed.shutdown()
        raise
    lost = (
        f"gradkit: process {jax.process_index()} ends, because another process of this run was lost (no sign of life "
        f"for {heartbeat} s). Start all of them again with the same commands: with --checkpoint_dir they go on from "
        "the last checkpoint."
    )
    with _last_words(lost):
        try:
            yield
        except (jax.errors.JaxRuntimeError, OSError) as error:
            said = _of_a_collective(error)
            if said is None:
                raise
            raise ConnectionError(f"{lost.removeprefix('gradkit: ')} ({said})") from error
        # Without the barrier the first to leave takes the coordinator with it, and the others end as if it had died.
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("gradkit: the run is over")
        jax.distributed.shutdown()


def _of_a_collective(error: BaseException | None) -> str | None:
    """What a collective with a lost process says; also where a checkpoint could not be written because of it."""
    while error is not None:
        text = str(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and ("gloo" in text.lower() or "coordination" in text.lower()):
            return text.splitlines()[0]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _last_words(text: str) -> Iterator[None]:
    """Prints a line where JAX aborts this process, which no Python of the process itself could do any more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    command = [sys.executable, "-I", "-c", _WATCHER, str(int(signal.SIGABRT)), text]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watcher:
        assert watcher.stdin is not None
        os.set_blocking(watcher.stdin.fileno(), False)
        before = signal.signal(signal.SIGABRT, lambda *_: None)
        wakeup = signal.set_wakeup_fd(watcher.stdin.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            # A handler that was not set from Python, as that of `faulthandler`, is None.
            signal.signal(signal.SIGABRT, signal.SIG_DFL if before is None else before)
            watcher.stdin.close()
