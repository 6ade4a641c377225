"""Checkpoints of training runs: written by Orbax beside the run, whole or not at all, read back onto any mesh.

    FOLDER/STEP/state/...             the arrays, under the names of `links`
    FOLDER/STEP/about/about.json      those names with shapes, dtypes and digests, the step, what the run says of
                                      itself, and a digest of all this

A checkpoint is written into a temporary folder that is renamed when all of it is there, and a checkpoint that is
no longer kept is renamed before it is deleted. So whenever the process is killed, each folder that is called after
a step is a whole checkpoint. What is read is compared to its digests, on any mesh: a file that was changed, or that is
of another step, is refused.
"""

import contextlib
import gc
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gradkit import checks
from gradkit.training import digests, regroup, storage
from gradkit.training.links import Leaf, Listing, carried, differences, listing

FORMAT = 3


class Report(NamedTuple):
    """What a restore did.

    Attributes:
      step: the step of the checkpoint.
      about: what the run that wrote it said of itself.
      kept: name of each leaf that was read -> its name in the checkpoint.
      dropped: names of the leaves of the checkpoint that found no place.
      fresh: names of the leaves that the checkpoint had nothing for, and that stayed as they were.
    """

    step: int
    about: dict[str, Any]
    kept: dict[str, str]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        moved = [old if old == new else f"{new}, which was {old}" for new, old in self.kept.items()]
        parts = (("kept", moved), ("dropped", self.dropped), ("fresh", self.fresh))
        return "\n".join(f"{word} {len(rows)}{':' if rows else ''} {'; '.join(rows)}".rstrip() for word, rows in parts)


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Every process of a run makes one, and calls `save`, `restore`, `wait` and `close` as the others do. A context
    manager: leaving it waits for what is being written. What the layout on disk is: at the head of this file.

    Args:
      folder: where they are; made if it is not there. Of several processes, a folder that all of them see.
      keep: how many are kept, >= 1: the newest. Default 3.

    Returns:
      The checkpoints. `save` returns as soon as the arrays are copied to the host; while one is being written the
      one before it and those kept are untouched, so for a while there is one more than `keep`.

    Raises:
      ValueError: `keep` out of range.
      OSError: the folder cannot be made or written. An error of the background is raised by the next `save`,
        `restore`, `wait` or `close`, once, and names folder and step; checkpoints written before stay valid.

    Example:
      >>> import jax.numpy as jnp
      >>> folder = tempfile.mkdtemp()
      >>> state = {"step": jnp.int32(7), "params": jnp.arange(3.0)}
      >>> with Checkpoints(folder) as checkpoints:
      ...     checkpoints.save(7, state, about={"seed": 0})
      >>> restored, report = Checkpoints(folder).restore(state, about={"seed": 0})
      >>> print(restored["params"], report.step, report.about)
      [0. 1. 2.] 7 {'seed': 0}
    """

    def __init__(self, folder: str | pathlib.Path, *, keep: int = 3) -> None:
        checks.integer("keep", keep, 1)
        self.folder = pathlib.Path(folder).absolute()
        self.keep = keep
        self._writing: int | None = None
        self._orbax: Any = None
        self._speak: Callable[[], None] = lambda: None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Permissions do not tell: a file system may be full or read-only, and root is asked for none.
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"\0")
        except OSError as error:
            raise type(error)(f"no checkpoints can be written in {self.folder}: {storage.reason(error)[0]}") from None

    def steps(self) -> tuple[int, ...]:
        """The steps that a checkpoint is there of, rising. One that is still being written is none yet."""
        return tuple(step for step in self._folders() if self._about_file(step).is_file())

    def latest(self) -> int | None:
        """The last step that a folder is called after, or None. Where the folder holds no checkpoint, `restore` says so
        rather than go back to an earlier one."""
        return max(self._folders(), default=None)

    def _folders(self) -> tuple[int, ...]:
        """The steps that folders are called after, rising, whatever is in them."""
        names = (entry.name for entry in self.folder.iterdir())
        return tuple(sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name)))

    def about(self, step: int | None = None) -> dict[str, Any]:
        """What the run said of itself when it saved a step; default: the latest."""
        return self._read(self._choose(step))["about"]

    def save(self, step: int, state: Any, *, about: Mapping[str, Any] | None = None) -> None:
        """Begins to write a checkpoint, after the one before it is written.

        The arrays may be donated or deleted as soon as this returns.

        Args:
          step: its number, above that of every checkpoint in the folder.
          state: `Run`, `TrainState`, or any tree of arrays and typed random keys.
          about: what the run says of itself (workload, method, seed, …), as JSON knows it. Default: nothing.

        Raises:
          ValueError: a step that is not above all others, or an `about` that is no JSON.
          TypeError: a leaf that is no array.
          OSError: this checkpoint or the one before it could not be written.
        """
        checks.integer("step", step, 0)
        self.wait()
        names = listing(state)
        note: dict[str, Any] = {"format": FORMAT, "step": int(step), "about": _as_json(about)}
        note |= {"links": names.links, "leaves": names.leaves, "rows": regroup.rows_of(state)}
        last = self.latest()
        if last is not None and step <= last:
            raise ValueError(f"{self.folder} has a checkpoint of step {last} already: step must be above, got {step}")
        arrays = {
            leaf.name: jax.random.key_data(x) if storage.is_key(x) else x
            for leaf, x in zip(names.leaves, jax.tree.leaves(state), strict=True)
            if 0 not in x.shape  # Orbax refuses to store nothing
        }
        if jax.process_count() > 1:
            # What is on one process only is the same on all; Orbax takes it from the first if it is of NumPy.
            arrays = {name: np.asarray(x) if x.is_fully_addressable else x for name, x in arrays.items()}
        with self._errors(step, "written"):
            ocp, writer = self._open()
            found = digests.begin(arrays)
            sealed = storage.note_kind()[1](lambda: digests.sealed({**note, "digests": found()}))
            saved = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), about=sealed)
            writer.save(self.folder / str(step), args=saved)
            self._writing = int(step)

    def restore(
        self,
        like: Any,
        *,
        step: int | None = None,
        about: Mapping[str, Any] | None = None,
        transplant: bool = False,
    ) -> tuple[Any, Report]:
        """Reads a checkpoint. Each leaf lands in the sharding that `like` has there, shard by shard.

        Args:
          like: the run that goes on: a tree of arrays, or of `jax.ShapeDtypeStruct`s with a sharding each (without
            one: on the first device). Another mesh or number of devices than at `save` is fine, and so is state in
            stacks of matrices (`shard=`) where it was kept by parameter, or the reverse; such a field is read by every
            process in full, one field at a time, and dealt out anew.
          step: of which step. Default: the latest.
          about: what must agree with what `save` was told, key by key; keys that are not in here are not compared.
          transplant: whether a checkpoint of another chain is accepted. Then state goes from link to link of the
            same class, in order and by names of fields and parameters, and what finds nothing stays as it is in
            `like`, which must hold arrays there. Parameters must match in full all the same.

        Returns:
          The tree, with the structure of `like`, and a `Report`.

        Raises:
          FileNotFoundError: there is no checkpoint, or none of this step.
          ValueError: the checkpoint is of another chain or run; the message names every link that differs.
          OSError: the checkpoint cannot be read, or its files were changed after it was written; the message names
            the array and the steps that may be read instead. Nothing is deleted.
        """
        self.wait()
        step = self._choose(step)
        note = self._read(step)
        saved = Listing(tuple(note["links"]), tuple(Leaf(a, b, tuple(c), d) for a, b, c, d in note["leaves"]))
        wanted, stacks = listing(like), saved
        there = regroup.from_note(note.get("rows", {}))
        saved, pieces = regroup.regrouped(saved, there, wanted, regroup.rows_of(like))
        self._check(step, note, saved, wanted, _as_json(about), transplant)
        sources = carried(saved, wanted) if transplant else {leaf.name: leaf.name for leaf in wanted.leaves}
        for leaf, x in zip(wanted.leaves, jax.tree.leaves(like), strict=True):
            if leaf.name not in sources and isinstance(x, jax.ShapeDtypeStruct):
                raise ValueError(f"the checkpoint has nothing for {leaf.name!r}: `like` must hold an array there")

        leaves, structure = jax.tree.flatten(like)
        places: dict[str, Any] = {}
        for leaf, x in zip(wanted.leaves, leaves, strict=True):
            if leaf.name in sources:
                places.setdefault(sources[leaf.name], x)
        with self._errors(step, "read"):
            folder = self.folder / str(step)
            arrays = storage.read(
                folder, {name: x for name, x in places.items() if name not in pieces}, note["digests"]
            )
            if pieces:
                own = {name: x for name, x in places.items() if name in pieces}
                arrays |= regroup.read(folder, pieces, stacks, own, note["digests"])
        # A counter that two links took is one array still, and donation may consume an array once.
        owners = {old: next(new for new in sources if sources[new] == old) for old in places}
        restored = [
            x
            if (old := sources.get(leaf.name)) is None
            else storage.like(arrays[old], x, copy=owners[old] != leaf.name)
            for leaf, x in zip(wanted.leaves, leaves, strict=True)
        ]
        dropped = tuple(leaf.name for leaf in saved.leaves if leaf.name not in places)
        fresh = tuple(leaf.name for leaf in wanted.leaves if leaf.name not in sources)
        return structure.unflatten(restored), Report(step, note["about"], sources, dropped, fresh)

    def set_aside(self, after: int) -> tuple[pathlib.Path, ...]:
        """Renames the checkpoints of later steps, so that a run can go on from this one; deletes nothing.

        Args:
          after: the step that the run goes on from.

        Returns:
          Where the later checkpoints are now: `STEP.set-aside`, in the same folder.
        """
        self.wait()
        moved = []
        for step in [step for step in self._folders() if step > after]:
            free = (self.folder / f"{step}.set-aside{n}" for n in ["", *(f"-{k}" for k in range(2, 1000))])
            moved.append(next(path for path in free if not path.exists()))

        def together(moment: str) -> None:
            if jax.process_count() > 1:
                from jax.experimental import multihost_utils

                multihost_utils.sync_global_devices(f"gradkit: later checkpoints {moment}")

        together("are known")
        if jax.process_index() == 0:
            for path in moved:
                (self.folder / path.name.split(".")[0]).rename(path)
        together("are set aside")
        return tuple(moved)

    def wait(self) -> None:
        """Waits until what is being written is written, and deletes what is no longer kept.

        Raises:
          OSError: it could not be.
        """
        if self._writing is None:
            return
        step, self._writing = self._writing, None
        with self._errors(step, "written"):
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                for old in self.steps()[: -self.keep]:
                    storage.delete((self.folder / str(old)).rename(self.folder / f"{old}{storage.TEMPORARY}"))

    def close(self) -> None:
        """Waits as `wait` does. `save` opens again what this closes."""
        self.wait()
        self._shut()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except OSError as late:
            if error is None:
                raise
            error.add_note(str(late))

    def _open(self) -> tuple[Any, Any]:
        """Orbax, and its writer; the first time what a killed run left half written is deleted."""
        import orbax.checkpoint as ocp

        if self._orbax is None:
            if jax.process_index() == 0:
                for rest in self.folder.glob(f"*{storage.TEMPORARY}*"):
                    with contextlib.suppress(OSError):
                        storage.delete(rest)
            self._speak = storage.hush()
            self._orbax = ocp.AsyncCheckpointer(storage.handler())
        return ocp, self._orbax

    def _shut(self, failed: bool = False) -> None:
        writer, self._orbax = self._orbax, None
        if writer is not None:
            with contextlib.suppress(Exception):
                writer.close()
            del writer
            if failed:
                gc.collect()  # what failed beside the first error is logged when it is collected: while hushed
            self._speak()

    @contextlib.contextmanager
    def _errors(self, step: int, done: str, *, orbax: bool = True) -> Iterator[None]:
        """Whatever goes wrong, in Orbax if it is asked, is one OSError that says where."""
        kind, said, cause = None, "", None
        try:
            yield
        except Exception as error:
            kind = type(error) if isinstance(error, OSError) else OSError
            said, known = storage.reason(error)
            # What the system says needs no trace through Orbax's threads; anything else may be a defect.
            cause = None if known else error
        if kind is None:
            return
        self._writing = None
        self._shut(failed=True)
        if orbax:
            speak = storage.hush()
            gc.collect()  # what failed beside the first error is logged when it is collected: while hushed
            speak()
        if done == "written" and jax.process_index() == 0:
            shutil.rmtree(self.folder / f"{step}{storage.TEMPORARY}", ignore_errors=True)
        valid = [other for other in self.steps() if other != step]
        rest = f"; valid: {', '.join(map(str, valid))}" if valid else ""
        if done == "read":
            before = max((other for other in valid if other < step), default=max(valid, default=None))
            way = f"; there is no other: rename {self.folder / str(step)} to begin anew"
            if before is not None:
                way = f": restore one with step={before} (--restore_step={before})"
            rest = f"{rest}{way}; nothing was deleted"
        raise kind(f"the checkpoint of step {step} in {self.folder} could not be {done}: {said}{rest}") from cause

    def _about_file(self, step: int) -> pathlib.Path:
        return self.folder / str(step) / "about" / "about.json"

    def _choose(self, step: int | None) -> int:
        steps = self._folders()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.folder}")
        if step is not None and step not in steps:
            raise FileNotFoundError(
                f"there is no checkpoint of step {step} in {self.folder}; there are {', '.join(map(str, steps))}"
            )
        return steps[-1] if step is None else int(step)

    def _read(self, step: int) -> dict[str, Any]:
        with self._errors(step, "read", orbax=False):
            file = self._about_file(step)
            if not file.is_file():
                raise FileNotFoundError(f"it has no file {file.relative_to(self.folder)}")
            try:
                note = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise OSError(f"about.json is no JSON any more ({error})") from None
            kind = note.get("format") if isinstance(note, dict) else None
            if not isinstance(kind, int) or (kind == FORMAT and not digests.is_sealed(note)):
                raise OSError("about.json was changed after it was written")
            if kind == FORMAT and note["step"] != step:
                raise OSError(f"it is the checkpoint of step {note['step']}, in a folder of another name")
        if kind != FORMAT:
            text = f"the checkpoint of step {step} in {self.folder} has format {kind}"
            raise ValueError(f"{text}, and this version of gradkit reads {FORMAT}")
        return note

    def _check(
        self, step: int, note: dict[str, Any], saved: Listing, wanted: Listing, about: dict[str, Any], transplant: bool
    ) -> None:
        """Refuses a checkpoint of another chain or run."""
        where = f"the checkpoint of step {step} in {self.folder}"
        there = note["about"]
        lines = [
            f"{key} is {json.dumps(there[key]) if key in there else 'not said'} there and {json.dumps(value)} here"
            for key, value in about.items()
            if key not in there or there[key] != value
        ]
        if lines:
            raise ValueError(f"{where} is of another run: {'; '.join(lines)}")
        rows = [tuple(leaf for leaf in which.leaves if leaf.link == "params") for which in (saved, wanted)]
        parameters = differences(*(Listing((), row) for row in rows))
        if transplant and parameters:
            raise ValueError(f"{where} has other parameters: {'; '.join(parameters)}")
        lines = [] if transplant else differences(saved, wanted)
        if lines:
            way = "" if parameters else ". With transplant=True what matches is carried over"
            raise ValueError(f"{where} is of another chain: {'; '.join(lines)}{way}")


def _as_json(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """What JSON makes of it, so that a tuple compares to the list it becomes."""
    try:
        return json.loads(json.dumps(dict(about or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"about must be a mapping that JSON can hold: {error}") from error
