"""Where the records of a run go besides the terminal: a file of JSON lines, and TensorBoard's event files."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]


def check_libraries() -> None:
    """Raises where what writes TensorBoard's files is not installed.

    Raises:
      ImportError: it names the extra.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise ImportError("--tensorboard needs tensorboardX: pip install 'gradkit[tensorboard]'") from error


def new_file(name: str | None) -> pathlib.Path | None:
    """A file that can be made and is not there yet.

    Raises:
      FileExistsError: it is there.
      PermissionError: its folder is not there, or cannot be written.
    """
    file = None if name is None else writable(name)
    if file is not None and file.exists():
        raise FileExistsError(f"--metrics_file={file} exists; name a new file")
    return file


def writable(name: str) -> pathlib.Path:
    """A file that can be made.

    Raises:
      PermissionError: its folder is not there, or cannot be written.
    """
    file = pathlib.Path(name)
    if not (file.parent.is_dir() and os.access(file.parent, os.W_OK | os.X_OK)):
        raise PermissionError(f"--metrics_file={file} cannot be written: no writable folder {file.parent}")
    return file


def rewind(file: pathlib.Path, step: int) -> None:
    """Takes a file of records back to a step, from which the run that wrote it goes on.

    Records of later steps will be written again, so they leave. With no record left at all the file may have been
    another run's: it is set aside under the first free name FILE.1, FILE.2, ….

    Raises:
      ValueError: a line before the last that is no record; the last one a killed run may have left half written.
    """
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = []
    for i, line in enumerate(lines):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            if i + 1 < len(lines):
                raise ValueError(f"--metrics_file={file} is no file of metrics: line {i + 1} is no record") from None
    if lines and not kept:
        number = next(n for n in range(1, 10**9) if not pathlib.Path(f"{file}.{n}").exists())
        file.rename(f"{file}.{number}")
        return
    half = pathlib.Path(f"{file}.part")
    half.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    half.replace(file)


@contextlib.contextmanager
def writer(file: pathlib.Path | None, tensorboard: str | None, step: int) -> Iterator[Callable[[Record], None]]:
    """A function that takes every record of a run and writes it wherever it was asked for.

    Args:
      file: of JSON lines, appended to; JSON knows no NaN: what is not finite is null.
      tensorboard: folder of event files.
      step: where the run begins; later events of an earlier, killed run are taken back.
    """
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("a", encoding="utf-8")) if file else None
        board = None
        if tensorboard is not None:
            from tensorboardX import SummaryWriter

            board = stack.enter_context(SummaryWriter(tensorboard, purge_step=step + 1 if step else None))

        def write(record: Record) -> None:
            if stream is not None:
                known = {name: value if math.isfinite(value) else None for name, value in record.items()}
                print(json.dumps(known), file=stream, flush=True)
            if board is not None:
                for name, value in record.items():
                    if name != "step":
                        board.add_scalar(name, value, record["step"])
                board.flush()

        yield write
