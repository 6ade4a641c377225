"""Two processes that disagree, a folder that is in use, a race that was killed, a disk that is full: one line each.

cd experiments; python -m reliability_parts.disagreements seed folder    prints what comes of some
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from gradkit.training import TrainConfig
from reliability_parts import children, stops

SECONDS = 90.0
RUN = ["train", "--workload=heavytail", "--method=adamw", "--steps=40", "--eval_every=20"]
# What process 1 is given instead; of a flag that is not in here, the default is changed by its type.
OTHERS: dict[str, list[str]] = {
    "workload": ["--workload=digits_mlp"],
    "method": ["--method=lion"],
    "learning_rate": ["--learning_rate=0.02"],
    "schedule": ["--schedule=constant"],
    "steps": ["--steps=60"],
    "eval_every": ["--eval_every=40"],
    "seed": ["--seed=1"],
    "global_batch": ["--global_batch=16"],
    "microbatch": ["--microbatch=16"],
    "norm_test_eta": ["--norm_test_eta=0.2"],
    "mesh": ["--mesh=data=4,fsdp=2"],
    "devices": ["--devices=2"],
    "checkpoint_every": ["--checkpoint_every=40"],
    "keep": ["--keep=5"],
    "transplant": ["--transplant"],
    "heartbeat": ["--heartbeat=11"],
    "checkpoint_dir": ["--checkpoint_dir=other"],
    "metrics_file": ["--metrics_file=other.jsonl"],
    "replicas": ["--replicas=2", "--sync=local"],
    "num_processes": ["--num_processes=3"],
}


def _end(running: list[subprocess.Popen[bytes]]) -> list[float]:
    """Seconds until each process has ended, by itself or at the end of all patience."""
    began, seconds = time.monotonic(), []
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.1, SECONDS - (time.monotonic() - began)))
        seconds.append(time.monotonic() - began)
    for process in running:
        process.kill()
        process.wait()
    return seconds


def _pair(root: pathlib.Path, extra: list[str], **second: Any) -> tuple[list[str], list[int], list[float]]:
    """Two processes, of which the second has more arguments, another folder or other code: what they say."""
    address = f"--coordinator=127.0.0.1:{stops.port()}"
    flags = [*RUN, "--checkpoint_dir=saved", "--devices=4", "--num_processes=2", "--heartbeat=10", address]
    running, outputs = [], [root / f"{i}.txt" for i in range(2)]
    for i, output in enumerate(outputs):
        own = second if i else {}
        with output.open("wb") as stream:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "gradkit", *flags, *(extra if i else []), f"--process_id={i}"],
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                    cwd=own.get("cwd", root),
                    env={**children.environment(), **own.get("env", {})},
                )
            )
    seconds = _end(running)
    return [o.read_text(errors="replace") for o in outputs], [p.returncode for p in running], seconds


def _refused(said: list[str], codes: list[int], seconds: list[float], word: str) -> tuple[str, str]:
    text = " / ".join(" ".join(one.split())[:250] for one in said)
    text = f"{codes}, {seconds[0]:.1f} and {seconds[1]:.1f} s: {text}"
    lines = all(one.count("\n") == 1 and one.startswith("gradkit: ") for one in said)
    good = 0 not in codes and lines and all(word in one for one in said)
    return ("refused" if good else "NOT REFUSED"), text


def disagree(name: str, root: pathlib.Path) -> tuple[str, str]:
    """Process 1 has another value of a flag."""
    said, codes, seconds = _pair(root, OTHERS[name])
    return _refused(said, codes, seconds, f"--{name}")


def code(root: pathlib.Path) -> tuple[str, str]:
    """Process 1 runs a copy of this library in which a comment is another."""
    copy = root / "copy"
    shutil.copytree(children.ROOT / "gradkit", copy / "gradkit", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "gradkit" / "types.py").open("a") as stream:
        stream.write("# A comment.\n")
    path = os.pathsep.join([str(copy), children.environment()["PYTHONPATH"]])
    return _refused(*_pair(root, [], env={"PYTHONPATH": path}), "code of gradkit")


def folder(root: pathlib.Path) -> tuple[str, str]:
    """Process 1 sees another folder of the same name."""
    (root / "elsewhere").mkdir()
    return _refused(*_pair(root, [], cwd=root / "elsewhere"), "--checkpoint_dir")


def _start(root: pathlib.Path, arguments: list[str], name: str, **how: Any) -> subprocess.Popen[bytes]:
    with (root / name).open("wb") as stream:
        command = [sys.executable, "-m", "gradkit", *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stream, cwd=root, env=children.environment(), **how
        )


def _wait_for(what: Any, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while not what() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def _steps(root: pathlib.Path) -> list[int]:
    return sorted(int(p.parts[-3]) for p in root.glob("saved/*/about/about.json") if p.parts[-3].isdigit())


def in_use(root: pathlib.Path) -> tuple[str, str]:
    """The same command a second time, while the first still runs."""
    run = [*RUN[:-2], "--steps=4000", "--eval_every=20", "--checkpoint_dir=saved", "--metrics_file=run.jsonl"]
    first = _start(root, run, "first.txt")
    _wait_for(lambda: _steps(root), first)
    second = _start(root, run, "second.txt")
    seconds = _end([second])[0]
    said = (root / "second.txt").read_text()
    early = first.poll() is None
    _end([first])
    rows = [json.loads(line)["step"] for line in (root / "run.jsonl").read_text().splitlines()]
    good = second.returncode == 2 and said.count("\n") == 1 and "in use" in said
    good = good and first.returncode == 0 and rows == [*range(20, 4001, 20)]
    return ("refused" if good else "NOT REFUSED"), f"{seconds:.1f} s, first still running: {early}: {said}"


def race(root: pathlib.Path) -> tuple[str, str]:
    """A race is killed when two of four methods have finished, and started again."""
    run = ["race", "--workloads=heavytail", "--methods=sgd,lion,adamw,lamb", "--rates=2", "--seeds=1", "--extensions=0"]
    run += ["--timing_rounds=1", "--out=report"]
    first = _start(root, run, "first.txt")
    kept = root / "report" / "finished.jsonl"
    _wait_for(lambda: kept.exists() and kept.read_text().count("\n") >= 2, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = kept.read_text().splitlines()[:2] if kept.exists() else []
    second = subprocess.run(
        [sys.executable, "-m", "gradkit", *run], capture_output=True, text=True, cwd=root, env=children.environment()
    )
    results = root / "report" / "results.json"
    found = json.loads(results.read_text()) if results.exists() else {"results": []}
    names = sorted(row["method"] for row in found["results"])
    line = next((line for line in second.stdout.splitlines() if "going on" in line), "")
    good = second.returncode == 0 and names == ["adamw", "lamb", "lion", "sgd"] and len(before) == 2 and "sgd" in line
    return ("goes on" if good else "STARTS ANEW"), f"{line}; {second.returncode} {second.stderr[-300:]}"


def full_disk(root: pathlib.Path) -> tuple[str, str]:
    """No file may grow above some size, which differs from trial to trial: what was written before is whole."""
    said = []
    for limit in (0, 100, 300, 1000, 3000, 10_000):
        shutil.rmtree(root / "saved", ignore_errors=True)
        (root / "run.jsonl").unlink(missing_ok=True)
        run = [*RUN, "--checkpoint_dir=saved", "--metrics_file=run.jsonl"]
        _start(root, run, "whole.txt").wait()
        whole = {step: (root / f"saved/{step}/about/about.json").read_bytes() for step in _steps(root)}
        longer = [*RUN[:-2], "--steps=400", "--eval_every=20", *run[-2:]]

        def small(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = _start(root, longer, "full.txt", preexec_fn=small)
        _end([process])
        text = (root / "full.txt").read_text()
        again = _start(root, longer, "again.txt")
        _end([again])
        rows = [json.loads(line)["step"] for line in (root / "run.jsonl").read_text().splitlines()]
        kept = {step for step in whole if (root / f"saved/{step}/about/about.json").exists()}
        good = again.returncode == 0 and rows == [*range(20, 401, 20)]
        if process.returncode and (limit and text.count("\n") != 1):
            good = False
        said.append(
            f"{limit} bytes: {process.returncode}, {' '.join(text.split())[:160]}" + ("" if good else " NOT WHOLE")
        )
        del kept
    outcome = "NOT WHOLE" if any("NOT WHOLE" in one for one in said) else "whole"
    return outcome, "; ".join(said)


CASES = {"code": code, "folder": folder, "in_use": in_use, "race": race, "full_disk": full_disk}


def items() -> list[str]:
    """Every flag that two processes may disagree in, and the other cases."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    return [*(name for name in OTHERS if name in known), *CASES]


def trial(item: str) -> tuple[str, str]:
    """What comes of one case."""
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        outcome, said = CASES[item](root) if item in CASES else disagree(item, root)
    return outcome, " ".join(said.split())[:1200]


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if len(sys.argv) == 1:
        children.serve(trial)
        return
    for name in sys.argv[1:]:
        print(name, *trial(name), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
