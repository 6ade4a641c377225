"""The methods of a race that have finished, in a file beside its report: a race that was killed goes on from them.

    {"race": KEY}                   a line for the race: a digest of its settings, its files and the code
    {"result": …}                   a line for every method that has finished on a problem

The file is deleted once the report is written.
"""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from gradkit.training import held
from gradkit.training.race import Result
from gradkit.training.settings import RaceConfig
from gradkit.training.sweep import Sweep

NAME, HALF = "finished.jsonl", "finished.part"


def key_of(config: RaceConfig) -> str:
    """A digest of all that the result of a method depends on besides its name and that of the problem.

    >>> config = RaceConfig(methods=("sgd", "lion"))
    >>> key_of(config) == key_of(RaceConfig(methods=("sgd",))), key_of(config) == key_of(RaceConfig(seeds=3))
    (True, False)
    """
    known: dict[str, Any] = {
        name: getattr(config, name) for name in ("rates", "decades", "seeds", "steps", "eval_every", "extensions")
    }
    known |= {where: held.of_file(where) for where in (*config.chain, *config.problem)} | held.versions()
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _packed(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return {"dtype": x.dtype.str, "values": x.tolist()}
    return {name: _packed(value) for name, value in x.items()} if isinstance(x, dict) else x


def _unpacked(x: Any) -> Any:
    if isinstance(x, dict):
        if x.keys() == {"dtype", "values"}:
            return np.asarray(x["values"], x["dtype"])
        return {name: _unpacked(value) for name, value in x.items()}
    return x


class Finished:
    """What a race in a folder has finished.

    Args:
      folder: of its report.
      key: as `key_of` makes it.

    Attributes:
      results: those that are there, by the names of problem and method.
    """

    def __init__(self, folder: pathlib.Path, key: str) -> None:
        self.file, self.key = folder / NAME, key
        self.results: dict[tuple[str, str], Result] = {}
        lines = self.file.read_text(encoding="utf-8").splitlines() if matches(folder, key) else []
        for line in lines[1:]:
            try:
                row = json.loads(line)["result"]
            except ValueError:
                break  # half written, when the race was killed
            given: dict[str, Any] = {**row, "sweep": Sweep(**_unpacked(row["sweep"])), "spread": tuple(row["spread"])}
            found = Result(**given)
            self.results[found.workload, found.method] = found
        self._begun = False

    def _begin(self) -> None:
        """Writes the file anew, without the results of another race or a half line."""
        rows = [{"race": self.key}, *map(_row, self.results.values())]
        half = self.file.with_name(HALF)
        half.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        half.replace(self.file)
        self._begun = True

    def add(self, result: Result) -> None:
        """Writes a result down, unless it is there."""
        if (result.workload, result.method) not in self.results:
            if not self._begun:
                self._begin()
            self.results[result.workload, result.method] = result
            with self.file.open("a", encoding="utf-8") as stream:
                print(json.dumps(_row(result)), file=stream, flush=True)

    def close(self) -> None:
        """Deletes the file of a race that is over."""
        self.file.unlink(missing_ok=True)


def _row(result: Result) -> dict[str, Any]:
    return {"result": {**result._asdict(), "sweep": _packed(result.sweep._asdict())}}


def matches(folder: pathlib.Path, key: str) -> bool:
    """Whether a folder has the beginning of the same race."""
    try:
        with (folder / NAME).open(encoding="utf-8") as stream:
            return json.loads(stream.readline()) == {"race": key}
    except (OSError, ValueError):
        return False
