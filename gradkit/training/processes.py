"""The devices and the processes of a run, and what is said where one of the processes is lost.

A run over several processes is the same command on every host, with the same `coordinator` and `num_processes` and
a `process_id` of its own. JAX ends every process within the heartbeat once one of them is gone: a collective that a
dead process takes part in never returns.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import jax

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
def joined(coordinator: str, num_processes: int | None, process_id: int | None, heartbeat: int) -> Iterator[None]:
    """Joins the processes of a run, and leaves them together.

    Args:
      coordinator: host:port of process 0, the same in every process; "auto" where the cluster (a TPU pod, SLURM, MPI)
        tells each process who it is.
      num_processes: how many processes there are.
      process_id: which one this is, from 0.
      heartbeat: seconds after which a silent process counts as lost, and the others end.

    Raises:
      ConnectionError: not all processes came in time, or one was lost.
    """
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            num_processes=num_processes,
            process_id=process_id,
            heartbeat_timeout_seconds=heartbeat,
        )
    except RuntimeError as error:
        raise ConnectionError(f"process {process_id} could not join {coordinator}: {error}") from error
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
