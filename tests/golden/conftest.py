"""The report of a run over another folder of trajectories: what became of each of its files."""

import os

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not os.environ.get("GRADKIT_GOLDEN"):
        return
    rows: dict[str, tuple[str, str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            said = dict(report.user_properties)
            rows |= {name: ("waits", f"for {', '.join(words)}") for name, words in said.get("waits", {}).items()}
            if "tests/golden/" in report.nodeid and "/" in report.nodeid.partition("[")[2]:
                error = f"error {said['error']:.1e}, bound {said['bound']:.0e}" if "error" in said else "raised"
                rows[report.nodeid.partition("[")[2].rstrip("]")] = (outcome, error)
    terminalreporter.section(f"golden files: {len(rows)}")
    for name, (outcome, said) in sorted(rows.items()):
        terminalreporter.write_line(f"{outcome:8} {name:48} {said}")
    counts = {outcome: sum(row[0] == outcome for row in rows.values()) for outcome in ("passed", "failed", "waits")}
    terminalreporter.write_line(", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
