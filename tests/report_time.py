"""What the tests cost: CPU seconds of every folder, child processes included, and of the whole.

With GRADKIT_TEST_TIME=FILE a run in which nothing failed adds a line to the file, and writes `slow.txt` anew: the test
functions that `make quick` leaves out, since all the cheaper ones together take as long as it may.
"""

import datetime
import itertools
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest

BEGUN = pytest.StashKey[tuple[float, float]]()
WORKERS = pytest.StashKey[list[float]]()
# Functions of tests, and for how many CPU seconds of them `make quick` has room beside start and collection.
SLOW, ROOM = Path(__file__).with_name("slow.txt"), 120.0
HEAD = "# date, commit, tests, wall seconds, CPU seconds of the whole and of each folder (two workers)\n"


def cpu() -> float:
    """Of this process and of those it has waited for."""
    return sum(os.times()[:4])


def folder(nodeid: str) -> str:
    """tests/papers, or gradkit for all examples in docstrings, or tests for the files in it."""
    path = PurePath(nodeid.split("::")[0])
    return "/".join(path.parent.parts[: 2 if path.parts[0] == "tests" else 1])


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEGUN] = cpu(), time.perf_counter()
    session.config.stash[WORKERS] = []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[BEGUN] = cpu(), time.perf_counter()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    if report.when == "teardown":
        report.user_properties = [*report.user_properties, ("cpu", cpu() - item.stash[BEGUN][0])]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cpu"] = cpu()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[WORKERS].append(getattr(node, "workeroutput", {}).get("cpu", 0.0))


def summed(reports: Iterable[Any], part: Callable[[str], str]) -> tuple[Counter[str], Counter[str]]:
    """CPU seconds and number of tests of every part."""
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == "cpu" and report.when == "teardown":
                seconds[part(report.nodeid)] += value
                tests[part(report.nodeid)] += 1
    return seconds, tests


def dear(reports: Iterable[Any], room: float) -> list[str]:
    """Functions of tests that have no room, those whose tests are cheap first."""
    seconds, tests = summed(reports, function)
    cheap_first = sorted(seconds, key=lambda name: (seconds[name] / tests[name], name))
    total = itertools.accumulate(seconds[name] for name in cheap_first)
    return sorted(name for name, used in zip(cheap_first, total, strict=True) if used > room)


def function(nodeid: str) -> str:
    """The name of a test without its parameters."""
    return nodeid.split("[")[0]


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Marks the tests of the functions in `slow.txt`."""
    names = set(SLOW.read_text().split("\n"))
    for item in items:
        if function(item.nodeid) in names:
            item.add_marker(pytest.mark.slow)


def line(seconds: Counter[str], tests: int, wall: float, whole: float) -> str:
    """What is kept of a run."""
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    date = datetime.datetime.now(datetime.UTC).date()
    folders = " ".join(f"{name}={seconds[name]:.0f}" for name in sorted(seconds))
    return f"{date} {asked.stdout.strip() or '-'} tests={tests} wall={wall:.0f} cpu={whole:.0f} {folders}\n"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    reports = {id(report): report for group in terminalreporter.stats.values() for report in group}
    seconds, tests = summed(reports.values(), folder)
    if not seconds or hasattr(config, "workerinput"):
        return
    wall = time.perf_counter() - config.stash[BEGUN][1]
    # Workers are processes that this one has waited for, but not for what they have waited for.
    whole = sum(config.stash[WORKERS]) + time.process_time() if config.stash[WORKERS] else cpu()
    rest = whole - seconds.total()
    terminalreporter.section(f"{whole:.0f} CPU seconds in {wall:.0f} seconds")
    for name, value in [*seconds.most_common(), ("start and collection", rest)]:
        terminalreporter.write_line(f"{value:8.1f}  {tests[name] or '':5}  {name}")
    if (file := os.environ.get("GRADKIT_TEST_TIME")) and exitstatus == 0:
        path = Path(file)
        kept = path.read_text() if path.exists() else HEAD
        path.write_text(kept + line(seconds, tests.total(), wall, whole))
        SLOW.write_text("".join(f"{name}\n" for name in dear(reports.values(), ROOM)))
