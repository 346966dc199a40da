"""After a power cut at any operation, whatever of it the disk has kept, the same command ends with the same bits."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline import job
from pipeline.config import Options, check_options, nested
from pipeline.errors import PipelineError, system_errors_in_one_line
from pipeline.index import index_run
from pipeline.progress import Made, Progress, Stopwatch
from pipeline.records import ImageStatus, Manifest, RunSpec
from pipeline.store import verification
from pipeline.store.run_folder import RunFolder
from pipeline.store.writer import Writer
from pipeline.verify import verify

from .damage import flip
from .faulty_disk import CHANGING, OTHERS, Recorder, Refusal, Tree, digest_of, read_tree, watching, write_tree
from .killed_runs import contents
from .stored_runs import put_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux" or sys.version_info < (3, 11), reason="asks /proc what is open")

# Key of an image that cannot be read now.
UNREADABLE = ""
CREATED, TAKEN_SECONDS = "2021-01-01T00:00:00+00:00", 1.5e9
Command = Callable[[], object]


class SeenBefore(BaseException):
    """From what is on the disk now, a run has ended as it should."""


def at_engine(part: str) -> None:
    """Is called where shards are about to be made."""


Item = TypeVar("Item")
EVERYTHING = (*CHANGING, *OTHERS)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.EFBIG, errno.ENOLCK, errno.ENOMEM)


@contextmanager
def stand_in(options: Options, weights: Any, run_folder: RunFolder) -> Iterator[Callable[..., Made]]:
    """Makes shards of seeded numbers in place of a network's; images of which nothing is there fail."""

    def make(progress: Progress, watch: Stopwatch) -> Made:
        made = Made("cpu")
        at_engine(str(run_folder.share))
        for part, missing in run_folder.parts():
            writer = Writer(run_folder.path, part, missing, 1, digests=run_folder.digests())
            rows = [row for shard in missing for row in range(shard.first, shard.stop)]
            try:
                put_rows(writer, rows, values_of(part), [status_of(part, row) for row in range(len(part.manifest))])
                writer.close()
            finally:
                writer.abort()
            made.add(writer)
        return made

    yield make


def status_of(spec: RunSpec, row: int) -> ImageStatus:
    if spec.manifest.keys[row] == UNREADABLE:
        return ImageStatus(row, "unreadable: permission denied", 0, 0, 0, "")
    content = Path(spec.manifest.root, spec.manifest.keys[row]).read_bytes()
    return ImageStatus(row, "", 20, 20, len(content), hashlib.sha256(content).hexdigest())


def values_of(spec: RunSpec) -> dict[str, list[NDArray[np.float32]]]:
    def draw(name: str, key: str, shape: Any) -> NDArray[np.float32]:
        return np.random.default_rng(zlib.crc32(f"{name} {key}".encode())).random(shape, np.float32)

    return {feature.name: [draw(feature.name, key, feature.shape) for key in spec.manifest.keys] for feature in spec.features}


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has what costs time and writes nothing done by something that does not."""
    plan_run, plans = job.plan_run, dict[Any, RunSpec]()

    def plan(options: Options, manifest: Manifest, weights: Any) -> RunSpec:
        key = id(options), manifest.digest
        if key not in plans:
            spec = plan_run(options, manifest, weights)
            plans[key] = replace(spec, attributes={**spec.attributes, "created": CREATED})
        return plans[key]

    monkeypatch.setattr(job, "open_local", stand_in)
    monkeypatch.setattr(job, "plan_run", plan)
    monkeypatch.setattr(job, "render_page", lambda *_: "<!doctype html>")
    # A process for each file that has no digest yet.
    monkeypatch.setattr(verification, "check_in_child", verification.check_hdf5)


class Place:
    """Folders of images, and a folder of runs that is watched."""

    def __init__(self, home: Path) -> None:
        self.home, self.runs, self.run = home, home / "outputs", home / "outputs/run"
        self.runs.mkdir()
        for count in (4, 6):
            (home / f"{count}/imgs").mkdir(parents=True)
            for number in range(count):
                # New ones come between those that are there.
                path = home / f"{count}/imgs/{number * 7 % 6}.png"
                Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(path)
                os.utime(path, (TAKEN_SECONDS, TAKEN_SECONDS))

    def command(self, images: int = 6, **more: Any) -> Command:
        """Gives the extraction of so many images."""
        given = {
            **{"data.dir": str(self.home / f"{images}/imgs"), "layers": ["relu5_1:avg"], "data.size": 32, "name": "run"},
            **{"network.weights": "random", "output.images_per_shard": 2, "output.dir": str(self.runs)},
        }
        options = check_options(nested(given | {name.replace("__", "."): value for name, value in more.items()}))
        return lambda: job.run(options, quiet=True)


def extended(place: Place) -> Command:
    place.command(4)()
    return place.command(output__existing="extend")


def replaced(place: Place) -> Command:
    place.command(data__size=48, output__images_per_shard=3)()
    return place.command(output__existing="replace")


def made_again(place: Place) -> Command:
    go_on = place.command()
    with mock.patch.object(sys.modules[__name__], "UNREADABLE", "2.png"):
        go_on()
    return go_on


def repaired(place: Place) -> Command:
    go_on = place.command()
    go_on()
    shard = place.run / "shards/shard-00001-of-00003.h5"
    flip(shard, 3000)
    damaged = shard.read_bytes()

    def repair() -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                verify(place.run, repair=True)
        except PipelineError:
            # Which says what was wrong, or that nothing is there yet that could be.
            if shard.exists() and shard.read_bytes() == damaged:
                raise
        go_on()

    return repair


def indexed(place: Place) -> Command:
    place.command()()
    for name in ("features.h5", "report.json", "report.html", "config.yaml"):
        (place.run / name).unlink()
    return lambda: index_run(place.run)


def in_parts(place: Place) -> Command:
    parts = [place.command(part=f"{number}/2") for number in (1, 2)]
    return lambda: [part() for part in parts]


def parts_at_once(place: Place) -> Command:
    parts = [place.command(part=f"{number}/2") for number in (1, 2)]

    def run() -> None:
        with ThreadPoolExecutor(len(parts)) as pool:
            for done in [pool.submit(part) for part in parts]:
                done.result()

    return run


COMMANDS: dict[str, Callable[[Place], Command]] = {
    "run": Place.command,
    "extend": extended,
    "replace": replaced,
    "again": made_again,
    "repair": repaired,
    "index": indexed,
    "parts": in_parts,
    "parts at once": parts_at_once,
}


def lines_of(tree: Tree) -> dict[tuple[str, str], tuple[str, bool]]:
    """Gives the whole lines of ``SHA256SUMS``: (file of lines, name) -> digest, whether it is that of the file."""
    found = {}
    for where, content in tree.items():
        folder, _, name = where.rpartition("/")
        if name.startswith("SHA256SUMS") and not name.endswith(".partial"):
            for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)\n", (content or b"").decode(), re.MULTILINE):
                there = tree.get(f"{folder}/{name}")
                found[where, name] = digest, there is None or hashlib.sha256(there).hexdigest() == digest
    return found


def timeless(content: bytes | None) -> bytes:
    """Gives an HDF5 file without the seconds at which its objects were changed."""
    # Source: HDF5 file format specification 3.0, object modification time: type 0x12, 8 bytes, version 1, 3 reserved, seconds.
    return re.sub(rb"(\x12\0\x08\0.\0\0\0\x01\0\0\0)....", rb"\1", content or b"", flags=re.DOTALL)


class Trials:
    """Stops a command, and has it go on.

    ``seen``: digests of all states of the disk from which it has gone on.
    """

    def __init__(self, place: Place, name: str, seed: int = 0) -> None:
        self._place, self.runs, self._draw = place, place.runs, random.Random(seed)
        self.command = COMMANDS[name](place)
        self._goes_on = in_parts(place) if name == "parts at once" else self.command
        self.seen = set[str]()
        # States of the disk at the first engine, from which the command has ended as it should: what follows is known.
        self._ended_well: set[str] = set()
        self.begun = read_tree(place.runs)
        # Of a file that was damaged on purpose.
        self._untrue = {line for line, (_, is_true) in lines_of(self.begun).items() if not is_true}
        self._goes_on()
        self._expected = read_tree(place.runs)
        write_tree(place.home / "expected", self._expected)

    def power_cuts(self, count: int, begun: Tree | None = None, kinds_first: bool = False) -> list[tuple[str, Tree]]:
        """Give so many states, at most, that a power cut may leave while the command goes on from one, or from its beginning.

        ``kinds_first``: those come first that differ in more than the bytes of files without a final name.
        """
        write_tree(self.runs, self.begun if begun is None else begun)
        recorder = Recorder(self.runs, lambda: time.sleep(self._draw.random() / 1000 if begun is None else 0))
        with watching(self.runs, recorder):
            (self.command if begun is None else self._goes_on)()
        found: dict[str, tuple[str, Tree]] = {}
        kinds: dict[str, str] = {}
        for moment in recorder.moments:
            for words, tree in moment.trees(self._draw):
                digest, where = digest_of(tree), f"{moment.operation}: {words}"
                if digest not in found and digest not in self.seen:
                    self._assert_whole(tree, recorder.renamed, where)
                    found[digest] = where, tree
                    kinds.setdefault(digest_of(tree, (".log", ".partial")), digest)
        first = [*kinds.values()] if kinds_first else [*found]
        others = [digest for digest in found if digest not in {*first}]
        return [found[digest] for digest in (*spread(first, count), *spread(others, count - len(first)))]

    def _assert_whole(self, tree: Tree, renamed: Mapping[str, set[bytes | None]], where: str) -> None:
        """Make sure that each file with its final name is as it was when it got it."""
        for name, content in tree.items():
            is_other = name.endswith((".partial", ".log")) or ".lock" in name or "SHA256SUMS" in name
            assert is_other or content is None or content in renamed.get(name, ()), f"{where}: {name} is not whole"
            if name.endswith("/features.h5") and content != self.begun.get(name):
                with h5py.File(io.BytesIO(content or b"")) as index:
                    shards = {source.file_name for source in index["features/relu5_1.avg"].virtual_sources()}
                assert {name.replace("features.h5", shard) for shard in shards} <= tree.keys(), f"{where}: the index lacks shards"
        untrue = {line for line, (_, is_true) in lines_of(tree).items() if not is_true}
        assert untrue <= self._untrue, f"{where}: lines that are not true: {untrue}"

    def go_on(self, where: str, tree: Tree) -> None:
        """Have the command go on from a state, to the same end."""
        self.seen.add(digest_of(tree))
        write_tree(self.runs, tree)
        try:
            self._finish()
        except Exception as error:
            error.add_note(f"after {where}")
            raise

    def _finish(self) -> None:
        met: list[str] = []

        def look(part: str) -> None:
            if not met:
                met.append(f"{part} {digest_of(read_tree(self.runs))}")
                if met[0] in self._ended_well:
                    raise SeenBefore

        with suppress(SeenBefore), mock.patch.object(sys.modules[__name__], "at_engine", look), mock.patch("os.fsync"):
            self._goes_on()
            self.assert_finished()
            self._ended_well.update(met)

    def assert_finished(self) -> None:
        """Make sure that the end is that of an undisturbed run."""
        # Where the system has refused a lock there may be none, or one that could not be removed.
        found = {name: content for name, content in read_tree(self.runs).items() if ".lock" not in name}
        assert found.keys() == {name for name in self._expected if ".lock" not in name}
        for name, content in found.items():
            expected = self._expected[name]
            if name.endswith(".h5"):
                assert self._is_expected(name, content), name
            elif name.endswith(".json"):
                report, other = json.loads(content or b""), json.loads(expected or b"")
                assert (report["rows"], report["failed"], report["index"]) == (other["rows"], other["failed"], other["index"])
            elif not name.endswith(".log") and "SHA256SUMS" not in name:
                assert content == expected, name
        lines = lines_of(found)
        assert all(is_true for _, is_true in lines.values())
        assert lines.keys() == lines_of(self._expected).keys()

    def _is_expected(self, name: str, content: bytes | None) -> bool:
        is_same = timeless(content) == timeless(self._expected[name])
        return is_same or contents(self.runs / name) == contents(self._place.home / "expected" / name)

    def assert_refused(self, refusal: Refusal) -> None:
        """Make sure that a refusal is one line, or of no consequence, and has left nothing that is not whole."""
        write_tree(self.runs, self.begun)
        refused: PipelineError | None = None
        with ExitStack() as stack:
            said = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(watching(self.runs, refusal, EVERYTHING))
            try:
                # As the command line does.
                with system_errors_in_one_line():
                    self.command()
            except PipelineError as error:
                refused = error
        if refused is None:
            self.assert_finished()
        else:
            assert (refused.exit_code, "\n" in str(refused)) == (1, False), repr(refused)
        assert "Traceback" not in said.getvalue(), said.getvalue()
        found = read_tree(self.runs)
        left = [name for name in found if name.endswith(".partial")]
        assert not left or refusal.operation.startswith("unlink"), left
        for name, content in found.items():
            if name.endswith((".h5", ".gz", ".yaml", ".html")):
                assert content == self.begun.get(name) or self._is_expected(name, content), f"{name} is not whole"
            elif name.endswith(".json"):
                json.loads(content or b"")
        untrue = {line for line, (_, is_true) in lines_of(found).items() if not is_true}
        assert untrue <= self._untrue, f"lines that are not true: {untrue}"
        self._finish()


def spread(states: Sequence[Item], count: int) -> list[Item]:
    """Gives so many of these, from all places."""
    return [states[int(number * len(states) / count)] for number in range(count)] if count < len(states) else [*states]


# 3,000 in all; an index is written in few operations.
@pytest.mark.parametrize("kinds_first", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "many"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_goes_on_to_the_same_bits_after_a_power_cut(tmp_path: Path, name: str, kinds_first: bool) -> None:
    trials = Trials(Place(tmp_path), name, seed=int(kinds_first))
    # So many cuts, of these so many after the power has been cut already.
    count, second = (420, 200) if kinds_first else (25, 5)
    states = trials.power_cuts(count - second, kinds_first=kinds_first)
    for where, tree in states:
        trials.go_on(where, tree)
    # As many as it takes: of some states few that are new come after.
    for where, tree in random.Random(0).sample(states, len(states)):
        if len(trials.seen) >= count:
            break
        for then, after in trials.power_cuts(min(20, count - len(trials.seen)), tree):
            trials.go_on(f"{where}, then {then}", after)
    assert len(trials.seen) >= (25 if not kinds_first else 250 if name == "index" else 400)


def refusals(trials: Trials) -> list[tuple[str, int, int]]:
    """Gives each kind of operation of a command with each error: operation, its number, error."""
    counting = Refusal()
    write_tree(trials.runs, trials.begun)
    with watching(trials.runs, counting, EVERYTHING):
        trials.command()
    kinds: dict[str, list[int]] = {}
    for number, operation in enumerate(counting.operations):
        kinds.setdefault(re.sub(r"\d{5}-of|-[0-9a-f]{8}\.", "", operation), []).append(number)
    draw = random.Random(0)
    return [(kind, draw.choice(numbers), error) for kind, numbers in kinds.items() for error in ERRORS]


@pytest.mark.parametrize(
    ("name", "count"),
    [("run", 20), *(pytest.param(name, 10_000, marks=pytest.mark.slow) for name in COMMANDS if name != "parts at once")],
)
def test_a_refusal_of_the_system_is_one_line_and_the_run_goes_on(tmp_path: Path, name: str, count: int) -> None:
    trials, failures = Trials(Place(tmp_path), name), []
    for operation, number, error in spread(refusals(trials), count):
        try:
            trials.assert_refused(Refusal(number, error))
        except Exception as failure:
            failures.append(f"{errno.errorcode[error]} at {operation}, number {number}: {failure!r}"[:1000])
    assert not failures, "\n".join(failures)
