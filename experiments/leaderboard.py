"""The leaderboard of the suite: the scores of all methods that have a file in experiments/leaderboard.

    python experiments/leaderboard.py

A file is what `gradkit race --suite=six --methods=NAME` writes; docs/guides/suite.md has the rules, and how a method is
added. The page is experiments/results/leaderboard.md, with a picture of the performance profiles for every budget.
"""

import pathlib

from absl import app, flags

from gradkit.training.report.suite import markdown, save_profiles
from gradkit.training.suite import Record, budgets, read, standings

HERE = pathlib.Path(__file__).parent
FLAGS = flags.FLAGS
flags.DEFINE_string("records", str(HERE / "leaderboard"), "folder of files of records")
flags.DEFINE_string("out", str(HERE / "results" / "leaderboard.md"), "the page; pictures are put beside it")

HEAD = """# Leaderboard

Which method reaches six targets the fastest, with the same number of trials for all:
[the rules, and how a method is added](../../docs/guides/suite.md). A score is relative to the methods in its table: 1
for the fastest on all workloads, 0 for one that misses all or takes four times as long. Made by
`python experiments/leaderboard.py` from the files of `experiments/leaderboard/`.

The first entries, with three trials and one study, ran on a machine that did other work as well: their steps count, but
one study is no median, and their times are rough.
"""


def picture(suite: str, trials: int, studies: int) -> str:
    """The name of the picture of a budget."""
    return f"leaderboard_{suite}_{trials}x{studies}.png"


def page(records: list[Record]) -> str:
    """The whole page."""
    parts = [HEAD] if records else [HEAD, "No method has been run yet.\n"]
    for suite, trials, studies in budgets(records):
        found = standings(records, suite, trials, studies)
        ran = [record for own in found.records.values() for record in own.values()]
        machines = sorted({f"gradkit {r.gradkit}, jax {r.jax}, {r.device}" for r in ran})
        name = picture(suite, trials, studies)
        parts += [
            f"## {suite}: {trials} trials, {studies} studies\n",
            f"![Share of workloads within a factor of the fastest method]({name})\n",
            markdown(found),
            f"\nRun with {'; '.join(machines)}: "
            f"`gradkit race --suite={suite} --budget={trials} --seeds={studies} --methods={','.join(found.methods)}`\n",
        ]
    return "\n".join(parts)


def main(argv: list[str]) -> None:
    """Writes the page and its pictures."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    records, out = read(pathlib.Path(FLAGS.records)), pathlib.Path(FLAGS.out)
    out.write_text(page(records), encoding="utf-8")
    for budget in budgets(records):
        save_profiles(standings(records, *budget), out.with_name(picture(*budget)))
    print(out)


if __name__ == "__main__":
    app.run(main)
