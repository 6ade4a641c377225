"""Where the report of a race goes: a folder that is checked before anything is computed."""

import contextlib
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradkit.training import finished
from gradkit.training.race import Race, Result
from gradkit.training.report.charts import save_png
from gradkit.training.report.page import page, versions

FILES = ("report.html", "curves.png", "results.json", finished.NAME, finished.HALF)
DEFAULT_ROOT = "race"


def reserve(out: str | None, overwrite: bool, key: str = "") -> pathlib.Path:
    """Makes the folder a report will go to, or refuses.

    Args:
      out: the folder; None for a fresh numbered one, `race/001`, `race/002`, …, or the last of these, if a race of the
        same settings was killed there.
      overwrite: whether the report of an earlier race in it may be replaced. Files of others never are.
      key: of the settings, as `gradkit.training.finished` makes it: a race that was killed goes on in its folder.

    Raises:
      FileExistsError: the folder holds files of others, or an earlier report and no leave to replace it.
      OSError: it cannot be made or written to.
    """
    if out is None:
        folders = (pathlib.Path(DEFAULT_ROOT) / f"{i:03d}" for i in itertools.count(1))
        known = list(itertools.takewhile(pathlib.Path.exists, folders))
        fresh = pathlib.Path(DEFAULT_ROOT) / f"{len(known) + 1:03d}"
        folder = known[-1] if known and finished.matches(known[-1], key) else fresh
    else:
        folder = pathlib.Path(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--out={folder} is a file, not a folder")
    present = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in present if name not in FILES]
    if foreign:
        raise FileExistsError(f"--out={folder} holds files that no race wrote ({foreign[0]}, …); name another folder")
    if present and not overwrite and not finished.matches(folder, key):
        raise FileExistsError(f"--out={folder} holds an earlier report; add --overwrite or name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out={folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"--out={folder} cannot be written to")
    return folder


def write(race: Race, folder: pathlib.Path, command: str) -> None:
    """Writes `report.html`, `curves.png` and `results.json`."""
    # The data first: a disk may be full before the picture is written.
    (folder / "results.json").write_text(json.dumps(record(race, command), indent=1) + "\n", encoding="utf-8")
    save_png(race, folder / "curves.png")
    (folder / "report.html").write_text(page(race, command), encoding="utf-8")


def record(race: Race, command: str) -> dict[str, Any]:
    """All that was measured, as JSON: infinity and NaN, which JSON does not know, are null."""
    areas = {"steps": race.step_profile.area, "time": race.time_profile.area}
    rows = _rows(race.results)
    return {"command": command, "versions": versions(), "profile_area": areas, "results": rows}


def write_finished(results: Sequence[Result], folder: pathlib.Path, command: str) -> str:
    """Writes `results.json` of a race that was interrupted; a folder that is empty is removed.

    Args:
      results: the last result of every method that has one.
      folder: as `reserve` made it.
      command: what was run.

    Returns:
      What is kept, in words.
    """
    if not results:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return "no method had finished"
    kept = {"command": command, "versions": versions(), "interrupted": True, "results": _rows(results)}
    (folder / "results.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    names = ", ".join(f"{row.method} on {row.workload}" for row in results)
    return f"finished: {names}, in {folder / 'results.json'}"


def _rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    rows = []
    for row in results:
        found = row.sweep
        rows.append(
            {
                "workload": row.workload,
                "method": row.method,
                "best_rate": row.best_rate,
                "steps_to_target": _plain(row.steps),
                "spread": _plain(row.spread),
                "seconds_to_target": _plain(row.seconds),
                "seconds_per_step": _plain(row.seconds_per_step),
                "final_metric": _plain(row.final),
                "robust": row.robust,
                "extended": row.extended,
                "at_edge": row.at_edge,
                "compile_seconds": {"sweep": found.compile_seconds, "one_run": _plain(row.compile_seconds)},
                "run_seconds": found.run_seconds,
                "rates": _plain(row.rates),
                "seeds": _plain(found.seeds),
                "evaluated_at": _plain(found.steps),
                "all_steps_to_target": _plain(found.steps_to_target),
                "curves": _plain(found.curves),
            }
        )
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return value if np.isfinite(value) else None
