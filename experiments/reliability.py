"""What a run, and every public callable, does when something is wrong: corruptions, kills, disagreements, wrong values.

    python experiments/reliability.py --parts=values,corruptions,disagreements,kills,interrupts

Each part writes what comes of every trial into a file of `--records`, and goes on from it when it is started again;
`--minutes` ends a run early. With all parts done, or `--parts=`, the table is printed, and written to `--table`.
"""

import collections
import pathlib
import sys
import time
from typing import Any

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from reliability_parts import children, corruptions, disagreements, stops, values

PARTS = ("values", "corruptions", "disagreements", "kills", "interrupts")
FLAGS = flags.FLAGS
flags.DEFINE_list("parts", list(PARTS), f"what is tried: {', '.join(PARTS)}")
flags.DEFINE_float("minutes", 1e9, "after which no trial is begun")
flags.DEFINE_integer("corruptions", 200, "corruptions of the newest checkpoint")
flags.DEFINE_integer("stops", 100, "kills, and interrupts: a half of each on one process, a half on two")
flags.DEFINE_list("processes", ["1", "2"], "of the runs that are stopped")
flags.DEFINE_string("records", "build/reliability", "folder of what comes of every trial")
flags.DEFINE_string("table", None, "a file for the table")


def tried(part: str, folder: pathlib.Path, until: float) -> bool:
    """Goes on with a part; whether it is done."""
    if part == "values":
        file = folder / "values.jsonl"
        return children.drive("reliability_parts.values", values.items(), file, until=until)
    if part == "corruptions":
        own = corruptions.items(FLAGS.corruptions)
        return children.drive("reliability_parts.corruptions", own, folder / "corruptions.jsonl", until=until)
    if part == "disagreements":
        own = disagreements.items()
        file = folder / "disagreements.jsonl"
        return children.drive("reliability_parts.disagreements", own, file, silence=600.0, until=until)
    kind = part.removesuffix("s")
    shares = {1: FLAGS.stops // 2, 2: FLAGS.stops - FLAGS.stops // 2}
    scratch = folder / "scratch"
    done = True
    for processes, count in shares.items():
        if str(processes) in FLAGS.processes:
            done &= stops.run(processes, kind, count, folder / f"{part}-{processes}.jsonl", scratch, until)
    return done


def share(count: int, of: int) -> str:
    return f"{100 * count / of:.2f} %" if of else "none"


def of_values(rows: list[dict[str, Any]]) -> list[str]:
    kinds = collections.Counter(row["outcome"] for row in rows)
    said = {
        "named": "refused where it is built or called, by the name of the argument",
        "unnamed": "refused there, without the name",
        "bare": "another error there",
        "late": "an error when the transformation is used",
        "accepted": "accepted",
        "hangs": "hangs",
        "aborts": "ends the interpreter",
        "no example": "of callables that have no example",
    }
    callables, arguments = len({row["item"][0] for row in rows}), len({tuple(row["item"][:2]) for row in rows})
    out = [f"wrong values: {len(rows)} for {arguments} arguments of {callables} public callables"]
    return out + [f"  {kinds[kind]:>7}  {share(kinds[kind], len(rows)):>8}  {text}" for kind, text in said.items()]


def of_trials(title: str, rows: list[dict[str, Any]]) -> list[str]:
    kinds = collections.Counter(row["outcome"] for row in rows)
    return [f"{title}: {len(rows)}", *(f"  {count:>7}  {kind}" for kind, count in kinds.most_common())]


def of_stops(part: str, processes: int, rows: list[dict[str, Any]]) -> list[str]:
    done = [row for row in rows if "seconds" in row]
    out = of_trials(f"{part} of {processes} {'process' if processes == 1 else 'processes'}", rows)
    if done:
        slowest = max((max(row["seconds"].values(), default=0.0) for row in done), default=0.0)
        early = sum(not row["at"] for row in done)
        ended = sum(row["over"] for row in done)
        out.append(f"  slowest end {slowest:.1f} s; {early} before the first checkpoint; {ended} after the last step")
    return out


def table(folder: pathlib.Path) -> str:
    """What is in the records."""
    out = of_values(children.records(folder / "values.jsonl"))
    out += ["", *of_trials("corruptions of the newest checkpoint", children.records(folder / "corruptions.jsonl"))]
    for part in ("kills", "interrupts"):
        for processes in (1, 2):
            out += ["", *of_stops(part, processes, children.records(folder / f"{part}-{processes}.jsonl"))]
    rows = children.records(folder / "disagreements.jsonl")
    out += ["", *of_trials("disagreements, folders in use, killed races, full disks", rows)]
    out += [f"  {row['item']:<18} {row['outcome']}" for row in rows]
    return "\n".join(out)


def main(argv: list[str]) -> None:
    del argv
    folder, until = pathlib.Path(FLAGS.records), time.monotonic() + 60 * FLAGS.minutes
    for part in FLAGS.parts:
        if part not in PARTS:
            raise app.UsageError(f"parts must be of {', '.join(PARTS)}, got {part!r}")
    left = [part for part in FLAGS.parts if not tried(part, folder, until)]
    if left:
        print(f"not done: {', '.join(left)}; the same command goes on")
    text = table(folder)
    print(text)
    if FLAGS.table and not left:
        flags_given = [argument for argument in sys.argv[1:] if not argument.startswith(("--table", "--records"))]
        command = " ".join(["$ python experiments/reliability.py", *flags_given])
        pathlib.Path(FLAGS.table).write_text(f"{command}\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
