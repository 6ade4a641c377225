"""Runs claims of the literature, all or some, and writes the overview.

python -m experiments.claims                          # what has no page yet
python -m experiments.claims --only=lion_rate,sam_label_noise --minutes=20
"""

import importlib
import json
import pathlib

from absl import app, flags

from experiments.claims import pages, protocol, standing

FLAGS = flags.FLAGS
flags.DEFINE_list("only", [], "these claims alone, also those that have a page")
flags.DEFINE_enum("scale", "small", ["small", "full"], "small: minutes on two cores; full: for a machine of its own")
flags.DEFINE_list("set", [], "NAME=NUMBER: other settings, for a trial, with another folder of --results")
flags.DEFINE_float("minutes", None, "when no further part of a claim is begun; the same command goes on")
flags.DEFINE_string("results", str(pages.RESULTS), "the folder of the pages")
flags.DEFINE_bool("overview", False, "only write the overview and the pages of experiments that were run before")


def main(argv: list[str]) -> None:
    """Runs what is missing; what is out of time is said, and goes on with the same command."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    results = pathlib.Path(FLAGS.results)
    if unknown := sorted(set(FLAGS.only) - set(pages.claims())):
        raise app.UsageError(f"no claim is called {', '.join(unknown)}; there are {', '.join(pages.claims())}")
    changes = {name: json.loads(value) for name, _, value in (entry.partition("=") for entry in FLAGS.set)}
    standing.write(results)
    done = pages.known(results)
    for name in () if FLAGS.overview else FLAGS.only or [name for name in pages.claims() if name not in done]:
        try:
            module = importlib.import_module(f"experiments.claims.{name}")
            page = protocol.run(module, results, scale=FLAGS.scale, minutes=FLAGS.minutes, changes=changes)
            print(f"{name}: {page.verdict}. {page.found}\n", flush=True)
        except protocol.OutOfTime as error:
            print(f"{name}: not finished, {error}", flush=True)
    (results / "README.md").write_text(pages.overview(results), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
