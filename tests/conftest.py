"""Strict settings for every test, two fixtures, and the table of what was proven of the contract.

Everything here is set before JAX looks at its devices, and reaches child processes through the environment.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import pipeline

# One thread per worker: two workers then fill two cores, and sums are taken in the same order in every run.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
# Eight devices are threads of one process: on a busy machine the last comes late, and XLA ends the process after 40 s.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=300"
os.environ["JAX_PLATFORMS"] = "cpu"
# Flags must stand before the bare token of ONE_THREAD, behind which XLA reads none.
os.environ["XLA_FLAGS"] = f"{pipeline.FLAGS} {PATIENCE} {os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# Outside the clone, so that a fresh one finds what another has compiled.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradkit" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from tests import eager, order, report_time  # noqa: E402
from tests.contract import table  # noqa: E402

if not pipeline.FULL:
    eager.install()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Two programs with collectives at once, as small ones in a row are, may wait for each other's threads for ever.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
# Reading the smallest program back takes a tenth of the time of compiling it.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# Otherwise a program with custom_partitioning has a pointer in its key and is never found again.
jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)

# The same examples in every run, no time limit (the first example of a shape compiles), no folder of failures.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None, database=None, max_examples=20)
hypothesis.settings.load_profile("house")


# Traces and programs are objects that stay: to look through all of them for cycles again and again takes time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

# Every compiled program is mapped into memory in pieces, of which Linux allows a process 65530; and all of them stay
# in memory, of which a small machine has little for each worker.
MAPS, PAGES = Path("/proc/self/maps"), Path("/proc/self/statm")
MOST_MAPS, MOST_BYTES = 40_000, 2 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Of all tests, not only of those in this folder."""
    config.pluginmanager.register(report_time)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What is about compiled programs has them as XLA makes them by default."""
    with pipeline.full() if item.get_closest_marker("full_pipeline") else contextlib.nullcontext():
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Forgets all programs before there are more than a process may have."""
    done = item.config.stash[FINISHED] = item.config.stash.get(FINISHED, 0) + 1
    if done % 50 or not MAPS.exists():
        return
    allowed = item.config.stash.get(ALLOWED, MOST_BYTES)
    if MAPS.read_bytes().count(b"\n") > MOST_MAPS or resident() > allowed:
        jax.clear_caches()
        gc.collect()
        # What stays is no program: to forget the same again and again would free nothing.
        item.config.stash[ALLOWED] = max(MOST_BYTES, resident() + MOST_BYTES // 4)


def resident() -> int:
    """Bytes of memory that this process takes."""
    return int(PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


FINISHED, ALLOWED = pytest.StashKey[int](), pytest.StashKey[int]()


@pytest.fixture
def key() -> jax.Array:
    """A random key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 is on while the test runs."""
    with jax.enable_x64(True):
        yield


COLLECTED = pytest.StashKey[dict[str, Any]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the tests of one chainable method behind each other, so that they share what they compute."""
    report_time.mark_slow(items)
    config.stash[COLLECTED] = table.gathered(items)
    methods: dict[str, int] = {}
    for item in items:
        keys = table.keys_of(item)
        item.user_properties.extend(("point", list(key)) for key in keys)
        if len(keys) == 1 and keys[0][0] == "chain":
            methods.setdefault(keys[0][2], len(methods))
    # The others come behind them.
    place = {item: methods.get(keys[0][2], len(methods)) for item in items if len(keys := table.keys_of(item)) == 1}
    items.sort(key=lambda item: place.get(item, len(methods)))
    items[:] = order.longest_first(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands over what it collected."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["points"] = session.config.stash.get(COLLECTED, {"owed": [], "reasons": []})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[COLLECTED] = getattr(node, "workeroutput", {}).get("points", {"owed": [], "reasons": []})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints what was proven of the contract, and for every method that it was not proven for, why."""
    collected = config.stash.get(COLLECTED, None)
    if not collected or not collected["owed"]:
        return
    terminalreporter.section("the contract")
    reports = (report for group in terminalreporter.stats.values() for report in group)
    for line in table.lines(collected, reports):
        terminalreporter.write_line(line)
