"""What the files of a run folder say together: each against its digest, the shard plan and the others; and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError
from ..records import ShardSpec
from . import damage, format
from .digests import Digests, is_own
from .examination import Facts
from .guard import Examination, Finding

# Of a digest's 64 hexadecimal digits, 60 differ where the file differs. Where fewer do, it is the line that has changed.
# Source: the digits of another file's SHA-256 are as good as random: 24 or fewer differ once in 10^31 times.
LINE_DIGITS = 24


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a run folder.

    Attributes:
        folder: The run folder.
        findings: Path from the run folder -> what is wrong; the files in order, :data:`~pipeline.store.format.DIGESTS_NAME` last.
        uncounted: Further findings that are not among them.
        damaged: Shards and index that are not as they were written: to be removed and made again.
        distrusted: Names whose lines in ``SHA256SUMS`` are wrong.
        files: That were checked.
        file_bytes: Their size.
        rows: Of the run; 0 where no file tells.
        failed: Rows of images that have failed, in the shards that could be read.
        layers: Names of the layers.
        row_bytes: Bytes of features that were decoded and held to their checksums.
    """

    folder: Path
    findings: Mapping[str, tuple[Finding, ...]]
    uncounted: int
    damaged: tuple[str, ...]
    distrusted: tuple[str, ...]
    files: int
    file_bytes: int
    rows: int
    failed: int
    layers: tuple[str, ...]
    row_bytes: int

    @property
    def count(self) -> int:
        """How many findings there are; none: the run is whole and unchanged."""
        return sum(map(len, self.findings.values())) + self.uncounted


class Judge:
    """Puts together what is known of the files of a folder.

    Args:
        folder: The run folder.
        digests: What its files should be.
        found: Path from the run folder -> the file's digest, or why it cannot be read; all files there are.
        examined: Likewise -> what came of it, for shards and index.
    """

    def __init__(
        self, folder: Path, digests: Digests, found: Mapping[str, str | OSError], examined: Mapping[str, Examination]
    ) -> None:
        self._folder = folder
        self._digests = digests
        self._found = found
        self._examined = examined
        self._findings: dict[str, list[Finding]] = {name: list(of.findings) for name, of in examined.items()}
        self._changed: set[str] = set()
        self._distrusted: list[str] = []
        self._leader = self._leading_facts()
        self._plan = _plan(self._leader)

    def _add(self, name: str, error: StoreError) -> None:
        found = self._findings.setdefault(name, [])
        found.append(Finding(str(error), isinstance(error, damage.ForeignError)))

    def _agrees(self, name: str) -> bool:
        return name in self._found and self._found[name] == self._digests.by_name.get(name)

    def _leading_facts(self) -> Facts | None:
        """Gives the facts that files are compared with: of the run that most are of, among those that agree with their digest."""
        facts = {name: of.facts for name, of in self._examined.items() if of.facts}
        trusted = {name: of for name, of in facts.items() if self._agrees(name) and not self._findings[name]} or facts
        digests = Counter(of.digest for of in trusted.values()).most_common(1)
        return next((of for of in trusted.values() if of.digest == digests[0][0]), None)

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
            elif found is None and not (self._folder / name).exists():
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
        return {format.INDEX_NAME, *(format.shard_path(shard.file_name) for shard in self._plan)}

    def _judge_files(self) -> None:
        """Holds the files to the plan and to each other; names those that differ and hold nothing wrong."""
        for name, digest in self._found.items():
            if isinstance(digest, OSError):
                self._add(name, damage.unreadable(self._folder / name, digest))
        for name, error in self._against_plan():
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

    def _against_plan(self) -> Iterator[tuple[str, StoreError]]:
        shards = [name for name in self._examined if name != format.INDEX_NAME]
        expected = [format.shard_path(shard.file_name) for shard in self._plan]
        there = len(set(expected) & set(shards))
        for name in expected:
            if name not in self._examined:
                yield name, damage.missing_shard(self._folder / name, there, len(expected))
        for name in shards:
            if expected and name not in expected:
                yield name, damage.extra_file(self._folder / name, expected[0], len(expected))
        if format.INDEX_NAME not in self._examined:
            count = len(expected) or int(shards[0].removesuffix(".h5").rpartition("-")[2])
            yield format.INDEX_NAME, damage.unfinished(self._folder, there, count, format.INDEX_NAME)

    def _against_leader(self) -> Iterator[tuple[str, StoreError]]:
        leader = self._leader
        for name, of in self._examined.items():
            facts, path = of.facts, self._folder / name
            if facts is None or leader is None or self._findings[name]:
                continue
            if facts.digest != leader.digest:
                yield name, damage.of_another_run(path, facts.digest, leader.digest)
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
        examined = self._examined.get(format.INDEX_NAME)
        index = examined.facts if examined else None
        if index is None or self._leader is None or index.digest != self._leader.digest:
            return
        for number, shard in enumerate(self._plan):
            name = format.shard_path(shard.file_name)
            of = self._examined.get(name)
            if of is None or of.facts is None or of.facts.digest != index.digest:
                continue
            if self._findings[name]:
                # Its tables may be what is wrong; the index is held to them once it has been made again.
                continue
            # What either lacks has been found already, unless it is a column of the list.
            both = [
                ("column {!r} of /images", index.columns, of.facts.columns),
                ("/checksums/{}", index.checksums, of.facts.checksums),
            ]
            for words, here, there in both:
                for part in sorted({*here} & {*there}):
                    if here[part][number] != there[part][0]:
                        got = f"other values than {shard.file_name} for rows {shard.first} to {shard.stop - 1}"
                        yield format.INDEX_NAME, damage.damaged(self._folder / format.INDEX_NAME, words.format(part), got)
            if examined and not examined.findings:
                for column in sorted({*index.columns} ^ {*of.facts.columns}):
                    got = f"it in only one of {shard.file_name} and {format.INDEX_NAME}"
                    yield (
                        format.INDEX_NAME,
                        damage.damaged(self._folder / format.INDEX_NAME, f"column {column!r} of /images", got),
                    )

    def _verdict(self) -> Verdict:
        last = [*format.DIGESTED_NAMES, format.DIGESTS_NAME]
        names = sorted(name for name, found in self._findings.items() if found)
        names.sort(key=lambda name: last.index(name) if name in last else -1)
        findings = {name: tuple(self._findings[name]) for name in names}
        damaged = [
            name
            for name in self._examined
            if (name in self._changed or findings.get(name)) and not any(found.is_foreign for found in findings.get(name, ()))
        ]
        leader = self._leader
        return Verdict(
            folder=self._folder,
            findings=findings,
            uncounted=sum(of.uncounted for of in self._examined.values()),
            damaged=tuple(damaged),
            distrusted=tuple({*self._distrusted, *self._changed}),
            files=len(self._found),
            file_bytes=sum((self._folder / name).stat().st_size for name in self._found),
            rows=leader.rows if leader else 0,
            failed=sum(of.facts.failed for name, of in self._examined.items() if of.facts and name != format.INDEX_NAME),
            layers=tuple(leader.layers) if leader else (),
            row_bytes=sum(of.facts.row_bytes for of in self._examined.values() if of.facts),
        )


def _plan(facts: Facts | None) -> tuple[ShardSpec, ...]:
    if facts is None:
        return ()
    rows, step = facts.rows, facts.images_per_shard
    count = -(-rows // step)
    return tuple(ShardSpec(n, count, n * step, min(rows, (n + 1) * step)) for n in range(count))
