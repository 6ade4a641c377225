"""Ctrl-C in the `gradkit` command: one line within two seconds, at any moment.

Python raises `KeyboardInterrupt` in the main thread once that is back from what it does: after seconds of compilation,
in the middle of an import as 40 lines, or inside a callback, where it is swallowed. So the command blocks the signal
before anything else is imported, and a thread of its own waits for it, says what is to be said, and ends the process.
A program that imports gradkit keeps Python's way.
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

SECONDS = 1.5  # for last words
CODE = 130

_words: list[Callable[[], str]] = []
_said: list[str] = []


def is_command() -> bool:
    """Whether this process is the command, by how it was started."""
    given = sys.orig_argv
    module = given[given.index("-m") + 1 :][:1] if "-m" in given else []
    return module == ["gradkit"] or pathlib.Path(sys.argv[0] if sys.argv else "").name in ("gradkit", "gradkit.exe")


def watch() -> None:
    """Takes Ctrl-C over for this process, unless it is ignored, as in the background of a shell."""
    usual = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    if usual and hasattr(signal, "pthread_sigmask"):
        # Threads that are started from here on, those of the compiler too, block it as well: one gets it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        threading.Thread(target=_wait, name="gradkit-interrupts", daemon=True).start()


def _wait() -> None:
    signal.sigwait({signal.SIGINT})
    speaker = threading.Thread(target=_speak, daemon=True)
    speaker.start()
    speaker.join(SECONDS)
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(1, b"\r\x1b[K\x1b[?25h")  # the cursor, which a live table hides
    os.write(2, f"{line()}\n".encode())
    os._exit(CODE)  # pyright: ignore[reportPrivateUsage]


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


def line() -> str:
    """The line of an interrupted command; what was said is then forgotten.

    >>> line()
    'gradkit: interrupted'
    """
    said = [text for text in _said if text]
    _said.clear()
    return "; ".join(["gradkit: interrupted", *said])


if is_command():
    watch()
