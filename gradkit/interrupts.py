"""Ctrl-C and SIGTERM in the `gradkit` command: one line within two seconds, at any moment.

Python raises `KeyboardInterrupt` in the main thread once that is back from what it does: after seconds of compilation,
in the middle of an import as 40 lines, or inside a callback, where it is swallowed. SIGTERM, with which clusters end
a process, would be taken by JAX where several processes are one run. So the command blocks both signals before anything
else is imported, and a thread of its own waits for them, says what is to be said, and ends the process. A program that
imports gradkit keeps Python's way.
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

SECONDS = 1.5  # for last words
# Signal -> what is said; the exit status is 128 and its number, as of a shell.
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
CODE = 128 + int(signal.SIGINT)

_words: list[Callable[[], str]] = []
_said: list[str] = []


def is_command() -> bool:
    """Whether this process is the command, by how it was started."""
    given = sys.orig_argv
    module = given[given.index("-m") + 1 :][:1] if "-m" in given else []
    return module == ["gradkit"] or pathlib.Path(sys.argv[0] if sys.argv else "").name in ("gradkit", "gradkit.exe")


def watch() -> None:
    """Takes the signals over for this process; what is ignored, as Ctrl-C in the background of a shell, stays so."""
    taken = {number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    usual = threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_sigmask")
    if usual and taken:
        # Threads that are started from here on, those of the compiler too, block them as well: one gets them.
        signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        threading.Thread(target=_wait, args=(taken,), name="gradkit-interrupts", daemon=True).start()


def _wait(taken: set[signal.Signals]) -> None:
    number = signal.Signals(signal.sigwait(taken))
    speaker = threading.Thread(target=_speak, daemon=True)
    speaker.start()
    speaker.join(SECONDS)
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(1, b"\r\x1b[K\x1b[?25h")  # the cursor, which a live table hides
    os.write(2, f"{line(number)}\n".encode())
    os._exit(128 + int(number))  # pyright: ignore[reportPrivateUsage]


def _speak() -> None:
    for say in [*_words]:
        with contextlib.suppress(OSError):
            _said.append(say())


@contextlib.contextmanager
def last_words(say: Callable[[], str]) -> Iterator[None]:
    """Within, what an interrupted command does and says before it ends.

    Args:
      say: keeps what is to be kept, in less than `SECONDS` and in any thread, and returns what is added to the line;
        nothing where it is empty.
    """
    _words.append(say)
    try:
        yield
    except KeyboardInterrupt:
        _said.append(say())
        raise
    finally:
        _words.remove(say)


def line(number: signal.Signals = signal.SIGINT) -> str:
    """The line of a command that a signal ends; what was said is then forgotten.

    >>> line(), line(signal.SIGTERM)
    ('gradkit: interrupted', 'gradkit: terminated')
    """
    said = [text for text in _said if text]
    _said.clear()
    return "; ".join([f"gradkit: {SIGNALS[number]}", *said])


if is_command():
    watch()
