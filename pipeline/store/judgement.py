"""What the files of a run folder say together: each against its digest, the shard plan and the others; and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError
from ..records import plan_shards
from . import damage, format
from .digests import Digests, is_own
from .examination import Facts
from .guard import DAMAGED, FOREIGN, UNREAD, Examination, Finding, make_finding
from .succession import Listed, find_run, is_of

# Of a digest's 64 hexadecimal digits, 60 differ where the file differs. Where fewer do, it is the line that has changed.
# Source: the digits of another file's SHA-256 are as good as random: 24 or fewer differ once in 10^31 times.
LINE_DIGITS = 24


# SHA-256 of a file, or why there is none.
Digest = str | OSError | StoreError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a run folder.

    Attributes:
        folder: The run folder.
        findings: Path from the run folder -> what is wrong; the files in order, :data:`~pipeline.store.format.DIGESTS_NAME` last.
        uncounted: Further findings that are not among them.
        damaged: Shards and index that are not as they were written: to be removed and made again.
        unread: Files that are in use or could not be read, of which nothing is known.
        distrusted: Names whose lines in ``SHA256SUMS`` are wrong.
        files: That were checked.
        file_bytes: Their size.
        rows: Of the run; 0 where no file tells.
        failed: Rows of images that have failed, in the shards that could be read.
        layers: Names of the layers.
        row_bytes: Bytes of features that were decoded and held to their checksums.
        indexed: Names of the shards that the index stands over: not all of them, where an extension is not finished.
    """

    folder: Path
    findings: Mapping[str, tuple[Finding, ...]]
    uncounted: int
    damaged: tuple[str, ...]
    unread: tuple[str, ...]
    distrusted: tuple[str, ...]
    files: int
    file_bytes: int
    rows: int
    failed: int
    layers: tuple[str, ...]
    row_bytes: int
    indexed: frozenset[str]

    @property
    def count(self) -> int:
        """How many findings there are; none: the run is whole and unchanged."""
        return sum(map(len, self.findings.values())) + self.uncounted


def _leads_out(name: str) -> bool:
    """Tells whether a line of ``SHA256SUMS`` names a file that is not in the folder, about which there is nothing to find out."""
    path = Path(name)
    return path.is_absolute() or ".." in path.parts


class Judge:
    """Puts together what is known of the files of a folder.

    Args:
        folder: The run folder.
        digests: What its files should be.
        found: Path from the run folder -> the file's digest, or why it cannot be read; all files there are.
        examined: Likewise -> what came of it, for shards and index.
        listed: Likewise, for the lists of images; None for one that is damaged or cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        digests: Digests,
        found: Mapping[str, Digest],
        examined: Mapping[str, Examination],
        listed: Mapping[str, Listed | None],
    ) -> None:
        self._folder = folder
        self._digests = digests
        self._found = found
        self._examined = examined
        self._listed = listed
        self._findings: dict[str, list[Finding]] = {name: list(of.findings) for name, of in examined.items()}
        self._changed: set[str] = set()
        self._distrusted: list[str] = []
        facts = self._trusted_facts()
        self._run = find_run([of.parts for of in facts], listed)
        # What files are compared with in all that is alike in all parts.
        self._leader = next((of for of in facts if is_of(of.parts, self._run)), None)
        self._plan = plan_shards([part.stop for part in self._run], self._leader.images_per_shard) if self._leader else ()

    def _add(self, name: str, error: StoreError) -> None:
        self._findings.setdefault(name, []).append(make_finding(error))

    def _agrees(self, name: str) -> bool:
        return name in self._found and self._found[name] == self._digests.by_name.get(name)

    def _trusted_facts(self) -> list[Facts]:
        """Gives the facts of the files that agree with their digest; of all, if none does."""
        facts = {name: of.facts for name, of in self._examined.items() if of.facts}
        return [of for name, of in facts.items() if self._agrees(name) and not self._findings[name]] or list(facts.values())

    def _facts(self, name: str) -> Facts | None:
        """Gives the facts of a file that is there, can be read, and is of the run."""
        of = self._examined.get(name)
        return of.facts if of and of.facts and is_of(of.facts.parts, self._run) else None

    def judge(self) -> Verdict:
        """Gives the verdict."""
        self._judge_lines()
        self._judge_files()
        return self._verdict()

    def _judge_lines(self) -> None:
        """Holds the lines of ``SHA256SUMS`` to the files."""
        path, by_name = self._digests.path, self._digests.by_name
        for number, text in self._digests.unreadable:
            self._add(format.DIGESTS_NAME, damage.wrong_line(path, number, text))
        for name, expected in by_name.items():
            found = self._found.get(name)
            if isinstance(found, str) and found != expected:
                if sum(one != other for one, other in zip(found, expected, strict=True)) <= LINE_DIGITS:
                    self._add(format.DIGESTS_NAME, damage.unlikely_digest(path, name, found, expected))
                    self._distrusted.append(name)
                else:
                    self._changed.add(name)
            elif found is None and (_leads_out(name) or not (self._folder / name).exists()):
                self._distrusted.append(name)
                if name in self._expected_names():
                    continue  # found by the plan
                if name in format.DIGESTED_NAMES or (not self._plan and is_own(name)):
                    self._add(name, damage.lost_file(self._folder / name, format.DIGESTS_NAME))
                else:
                    self._add(format.DIGESTS_NAME, damage.stray_line(path, name))
        for name in self._found:
            if name not in by_name:
                self._add(format.DIGESTS_NAME, damage.without_line(path, name))

    def _expected_names(self) -> set[str]:
        lists = [format.manifest_name(part) for part in range(len(self._run))]
        return {format.INDEX_NAME, *lists, *(format.shard_path(shard.file_name) for shard in self._plan)}

    def _indexed(self) -> frozenset[str]:
        index = self._facts(format.INDEX_NAME)
        parts = len(index.parts) if index else len(self._run)
        return frozenset(format.shard_path(shard.file_name) for shard in self._plan if shard.part < parts)

    def _judge_files(self) -> None:
        """Holds the files to the plan and to each other; names those that differ and hold nothing wrong."""
        for name, digest in self._found.items():
            if isinstance(digest, OSError):
                self._add(name, damage.unreadable(self._folder / name, digest))
            elif isinstance(digest, StoreError) and name not in self._examined:
                self._add(name, digest)
        for name, error in [*self._against_plan(), *self._lists()]:
            self._add(name, error)
        for name, error in list(self._against_leader()):
            self._add(name, error)
        for name, error in list(self._index_against_shards()):
            self._add(name, error)
        for name in sorted(self._changed):
            if not self._findings.get(name):
                found = self._found[name]
                assert isinstance(found, str)
                expected = self._digests.by_name[name]
                self._add(name, damage.changed(self._folder / name, found, expected, name in self._examined))
        self._judge_extension()

    def _judge_extension(self) -> None:
        """Says so where the index has not all rows yet. It may be right for those that it has, and is no reason to remove it."""
        index = self._facts(format.INDEX_NAME)
        if index is None or len(index.parts) == len(self._run):
            return
        is_whole = not any(self._findings.get(name) for name in (format.INDEX_NAME, *self._indexed()))
        rows = index.parts[-1].stop, self._run[-1].stop
        self._add(format.INDEX_NAME, damage.unfinished_extension(self._folder, format.INDEX_NAME, *rows, is_whole))

    def _lists(self) -> Iterator[tuple[str, StoreError]]:
        """Holds the lists of images to the parts of the run."""
        names = [format.manifest_name(part) for part in range(len(self._run))]
        for name in names:
            if name not in self._listed:
                yield name, damage.missing_list(self._folder / name)
        for name, listed in self._listed.items():
            if not isinstance(self._found.get(name), str):
                continue  # no file of its own, or not to be read: found already
            if listed is None:
                yield name, damage.damaged_list(self._folder / name)
            elif self._run:
                part = self._run[names.index(name) if name in names else -1]
                if name not in names or listed.digest != part.digest:
                    yield name, damage.list_of_another_run(self._folder / name, listed.digest, part.digest)

    def _against_plan(self) -> Iterator[tuple[str, StoreError]]:
        shards = [name for name in self._examined if name != format.INDEX_NAME]
        # A mapping, in which names are found however many there are.
        expected = {format.shard_path(shard.file_name): shard for shard in self._plan}
        there = len({*expected} & {*shards})
        for name in expected:
            if name not in self._examined:
                yield name, damage.missing_shard(self._folder / name, there, len(expected))
        for name in shards:
            if expected and name not in expected:
                yield name, damage.extra_file(self._folder / name, next(iter(expected)), len(expected))
        if format.INDEX_NAME not in self._examined:
            count = len(expected) or format.planned_shards(Path(name).name for name in shards)
            yield format.INDEX_NAME, damage.unfinished(self._folder, there, count, format.INDEX_NAME)

    def _against_leader(self) -> Iterator[tuple[str, StoreError]]:
        leader = self._leader
        for name, of in self._examined.items():
            facts, path = of.facts, self._folder / name
            if facts is None or leader is None or self._findings[name]:
                continue
            if not is_of(facts.parts, self._run):
                part = self._run[min(len(facts.parts), len(self._run)) - 1]
                yield name, damage.of_another_run(path, facts.digest, part.digest)
                continue
            for attribute, value in leader.attributes.items():
                if facts.attributes.get(attribute) != value:
                    got = f"{facts.attributes.get(attribute)}, where the other files have {value}"
                    yield name, damage.damaged(path, f"attribute {attribute!r} of the root", got)
            for layer in {**leader.layers, **facts.layers}:
                if facts.layers.get(layer) != leader.layers.get(layer):
                    got = f"{facts.layers.get(layer)}, where the other files have {leader.layers.get(layer)}"
                    yield name, damage.damaged(path, f"layer {layer}", got)

    def _index_against_shards(self) -> Iterator[tuple[str, StoreError]]:
        examined, index = self._examined.get(format.INDEX_NAME), self._facts(format.INDEX_NAME)
        if index is None:
            return
        # Those that it stands over are the first of the plan.
        for number, shard in enumerate(self._plan[: len(self._indexed())]):
            name = format.shard_path(shard.file_name)
            facts = self._facts(name)
            if facts is None or self._findings[name]:
                # Its tables may be what is wrong; the index is held to them once it has been made again.
                continue
            # What either lacks has been found already, unless it is a column of the list.
            both = [
                ("column {!r} of /images", index.columns, facts.columns),
                ("/checksums/{}", index.checksums, facts.checksums),
            ]
            for words, here, there in both:
                for part in sorted({*here} & {*there}):
                    if here[part][number] != there[part][0]:
                        got = f"other values than {shard.file_name} for rows {shard.first} to {shard.stop - 1}"
                        yield format.INDEX_NAME, damage.damaged(self._folder / format.INDEX_NAME, words.format(part), got)
            if examined and not examined.findings:
                for column in sorted({*index.columns} ^ {*facts.columns}):
                    got = f"it in only one of {shard.file_name} and {format.INDEX_NAME}"
                    yield (
                        format.INDEX_NAME,
                        damage.damaged(self._folder / format.INDEX_NAME, f"column {column!r} of /images", got),
                    )

    def _must_be_made_again(self, name: str) -> bool:
        kinds = {found.kind for found in self._findings[name]}
        # What is of neither kind says nothing against the file; a digest that differs does.
        return FOREIGN not in kinds and (name in self._changed or DAMAGED in kinds)

    def _verdict(self) -> Verdict:
        last = [*format.DIGESTED_NAMES, format.DIGESTS_NAME]
        names = sorted(name for name, found in self._findings.items() if found)
        names.sort(key=lambda name: last.index(name) if name in last else -1)
        findings = {name: tuple(self._findings[name]) for name in names}
        damaged = [name for name in self._examined if name in findings and self._must_be_made_again(name)]
        leader = self._leader
        return Verdict(
            folder=self._folder,
            findings=findings,
            uncounted=sum(of.uncounted for of in self._examined.values()),
            damaged=tuple(damaged),
            unread=tuple(name for name in names if any(found.kind == UNREAD for found in findings[name])),
            distrusted=tuple({*self._distrusted, *self._changed}),
            files=len(self._found),
            file_bytes=sum((self._folder / name).lstat().st_size for name in self._found),
            rows=self._run[-1].stop if self._run else 0,
            failed=sum(of.facts.failed for name, of in self._examined.items() if of.facts and name != format.INDEX_NAME),
            layers=tuple(leader.layers) if leader else (),
            row_bytes=sum(of.facts.row_bytes for of in self._examined.values() if of.facts),
            indexed=self._indexed(),
        )
