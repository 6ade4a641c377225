"""A race into a folder: what its methods have found is there as soon as each has finished."""

import contextlib
import pathlib
from collections.abc import Callable, Sequence

from gradkit import interrupts
from gradkit.training import finished, held
from gradkit.training.race import Progress, Race, race_config
from gradkit.training.report.files import reserve, write, write_finished
from gradkit.training.report.live import watcher
from gradkit.training.settings import RaceConfig
from gradkit.workloads import Workload


def into_folder(
    config: RaceConfig, problems: Sequence[Workload], command: str
) -> tuple[pathlib.Path, Callable[[Callable[[Race], None]], Race]]:
    """Reserves the folder of a race, and holds it.

    Args:
      config: of the race.
      problems: that it is on.
      command: what was run, for the report.

    Returns:
      The folder, and what races: called with a function that says what came out, before the report is written.

    Raises:
      OSError: the folder cannot be made or written, holds what is not this race's, or is in use.
    """
    key = finished.key_of(config)
    folder = reserve(config.out, config.overwrite, key)
    with contextlib.ExitStack() as stack:
        stack.enter_context(held.held(folder))
        stored = finished.Finished(folder, key)
        leave = stack.pop_all()

    def run(say: Callable[[Race], None]) -> Race:
        before, done = dict(stored.results), dict(stored.results)
        if before:
            print(f"going on in {folder}: {', '.join(f'{m} on {w}' for w, m in before)} had finished", flush=True)

        def kept() -> str:
            return write_finished([*done.values()], folder, command)

        with interrupts.last_words(kept), watcher(config, problems=problems) as watch:

            def seen(event: Progress) -> None:
                if event.result is not None:
                    done[event.workload, event.method] = event.result
                    stored.add(event.result)
                watch(event)

            found = race_config(config, seen, before)
        say(found)
        write(found, folder, command)
        stored.close()
        return found

    def held_run(say: Callable[[Race], None]) -> Race:
        with leave:
            return run(say)

    return folder, held_run
