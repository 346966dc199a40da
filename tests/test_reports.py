"""When report.json and report.html are written, what the page of a stored run says, and the samples in it."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from pipeline import report as report_module
from pipeline.config import defaults
from pipeline.errors import ImageError, StoreError
from pipeline.figures import make_maps
from pipeline.formatting import count_causes
from pipeline.job import write_reports
from pipeline.records import ImageRecord, ImageStatus, RunSpec
from pipeline.report import CAUSES, EXAMPLES, Report, histogram, map_picture, page_values, render, sample_maps, shown
from pipeline.store.digests import Digests
from pipeline.store.reader import open_run
from pipeline.store.statistics import LayerStatistics, Tally
from pipeline.store.verification import verify_folder

from .damage import chunk_place, flip, write_companions
from .pages import Page, make_report
from .stored_runs import make_spec, make_values, write_run

ATTRIBUTES = {
    "network": "vgg19",
    "weights": "a file <b>; conv1_1 says: VGG-19",
    "weights_sha256": "ab" * 32,
    "preprocess": "RGB 0..255",
    "compression": "gzip",
    "data_root": "/data/<i>",
    "mean_pixel": np.array([123.68, 116.779, 103.939]),
    **{"device": "gpu", "gpu": "NVIDIA H200", "precision": "tf32", "cuda": "12.5"},
}


def full_spec(rows: int = 10, **settings: Any) -> RunSpec:
    return replace(make_spec(rows, **settings), attributes=ATTRIBUTES)


def report_of(folder: Path, spec: RunSpec, **changes: Any) -> Report:
    rows = len(spec.manifest)
    given = {
        **{
            "folder": str(folder),
            "index": str(folder / "features.h5"),
            "run_digest": spec.digest,
            "rows": rows,
            "rows_now": rows,
        },
        **{"layers": {feature.layer.name: feature.shape for feature in spec.features}, "failed": 2},
        **{"causes": {"truncated after 17 bytes": 2}},
        "options": defaults() | {"data.dir": "imgs <1>", "layers": ["conv1_1", "relu4_1"]},
    }
    return make_report(**{**given, **changes})


@pytest.fixture(autouse=True)
def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No photographs."""

    def refuse(*_: Any) -> None:
        raise ImageError("file not found")

    monkeypatch.setattr(report_module, "thumbnail", refuse)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without a report, to be copied."""
    folder = tmp_path_factory.mktemp("written") / "run"
    write_run(folder, full_spec(), failed=[2, 5])
    write_companions(folder)
    Digests(folder).drop(["report.json"])
    (folder / "report.json").unlink()
    return folder


@pytest.fixture
def run(written: Path, tmp_path: Path) -> tuple[Path, RunSpec]:
    folder, spec = tmp_path / "run <x>", full_spec()
    shutil.copytree(written, folder)
    write_reports(folder, spec, report_of(folder, spec), is_unchanged=False)
    return folder, spec


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {name: ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) for name in ("report.json", "report.html")}


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_finished_run_has_both_and_verify_knows_them(run: tuple[Path, RunSpec]) -> None:
    folder, _ = run
    assert verify_folder(folder, 1).count == 0
    assert Digests(folder).by_name.keys() >= {"report.json", "report.html"}
    found = page_of(folder)
    assert found.wrong == []
    for text in (
        "run <x>",
        "10 images, conv1_1, relu4_1 of vgg19",
        "rate12.50 images/s on the cpu",
        "stored250 B, 25% of raw",
        "What helps: faster disk, more runtime.workers, output.dtype=float16",
        "python -m pipeline.run 'data.dir=imgs <1>' 'layers=[conv1_1,relu4_1]' output.dir=",
        "2 truncated after 17 bytes",
        "folder2/image é2.jpg truncated after 17 bytes",
        "folder2/image é5.jpg",
        "row 0, 400 × 300 px, label folder0",
        "no picture: file not found",
        "/data/<i>",
        "123.680, 116.779, 103.939",
        "float32, compression gzip",
        "devicegpu, NVIDIA H200, tf32, CUDA 12.5",
        "80 × 80 × 3",
        "dead channels0 of 3",
        "with channel 0 and the two most active channels of conv1_1, relu4_1, each from",
    ):
        assert text in found.text, text
    assert "Untrained" not in found.text
    statistics = open_run(folder).statistics["relu4_1"]
    assert statistics.rows == 8
    assert f"{statistics.maximum:.4g}" in found.text
    assert len(found.of("img")) == 6 * 2 * 3


def test_a_run_that_has_nothing_to_do_rewrites_neither(run: tuple[Path, RunSpec]) -> None:
    folder, spec = run
    before = state(folder)
    write_reports(folder, spec, report_of(folder, spec, rows_now=0), is_unchanged=True)
    assert state(folder) == before


@pytest.mark.parametrize("how", ["missing", "changed", "without a line"])
def test_a_page_that_is_not_there_is_made(run: tuple[Path, RunSpec], how: str) -> None:
    folder, spec = run
    if how == "missing":
        (folder / "report.html").unlink()
    elif how == "changed":
        flip(folder / "report.html", 2000)
    else:
        Digests(folder).drop(["report.html"])
    write_reports(folder, spec, report_of(folder, spec, rows_now=0, images_per_second=0.0), is_unchanged=True)
    assert verify_folder(folder, 1).count == 0


def test_a_kill_between_the_two_leaves_no_page_of_another_state(
    run: tuple[Path, RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spec = run
    renamed = Path.replace

    def stop(path: Path, target: Path) -> Any:
        if target.name == "report.json":
            raise KeyboardInterrupt
        return renamed(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_reports(folder, spec, report_of(folder, spec, rows_now=3), is_unchanged=False)
    assert not (folder / "report.html").exists()
    assert "report.html" not in Digests(folder).by_name
    monkeypatch.undo()
    write_reports(folder, spec, report_of(folder, spec, rows_now=0), is_unchanged=True)
    assert verify_folder(folder, 1).count == 0


def test_a_full_disk_is_one_line(run: tuple[Path, RunSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, spec = run
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith("report.html"):
            raise OSError(28, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"report\.html: the disk is full, got ENOSPC\."):
        write_reports(folder, spec, report_of(folder, spec), is_unchanged=False)
    assert list(folder.glob("report.html*")) == []
    assert (folder / "report.json").exists()


def test_failures_are_counted_by_cause_and_the_first_are_named(tmp_path: Path) -> None:
    spec = full_spec(60, shapes={"relu1_1": (1, 1, 3)}, images_per_shard=60)
    causes = [f"cause {row % 20}: of {row}" if row < 40 else "missing: file not found" for row in range(59)]
    write_run(tmp_path, spec, statuses={row: ImageStatus(row, cause, 0, 0, 1, "") for row, cause in enumerate(causes)})
    report = report_of(tmp_path, spec, failed=59, causes=count_causes(causes))
    write_reports(tmp_path, spec, report, is_unchanged=False)
    text = page_of(tmp_path).text
    assert "19 missing" in text
    assert f"and {21 - CAUSES} other causes" in text
    assert f"and {59 - EXAMPLES} more; all are in /images/error" in text
    assert "image é23.jpg cause 3: of 23" in text
    assert "image é24.jpg" not in text


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_samples_are_spread_and_show_the_most_active_channels(tmp_path: Path, dtype: str) -> None:
    spec = full_spec(12, shapes={"relu1_1": None, "fc6.l2": (5,)} if dtype == "float32" else {"relu1_1": None}, dtype=dtype)
    values = make_values(spec, {row: (30 + row, 40) for row in range(12)})
    for row in range(12):
        values["relu1_1"][row][..., 1] += 3
    write_run(tmp_path, spec, failed=[0, 11], values=values)
    run = open_run(tmp_path)
    samples = page_values(report_of(tmp_path, spec), run, spec.manifest)["samples"]
    assert [sample["row"] for sample in samples] == [1, 3, 5, 6, 8, 10]
    # Vectors have no pictures.
    (first,) = samples[0]["layers"]
    maps = [of for of, _ in first["maps"]]
    assert [of.channels for of in maps] == [[0], [1], [2]]
    np.testing.assert_array_equal(maps[1].values, run["relu1_1"][1][..., 1])
    assert (maps[1].low, maps[1].high) == (run["relu1_1"][1][..., 1].min(), run["relu1_1"][1][..., 1].max())


def test_a_row_that_is_too_large_or_damaged_is_said_where_its_map_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = full_spec(2)
    write_run(tmp_path, spec)
    path = tmp_path / "shards" / spec.shards()[0].file_name
    # Two of them, since a bit may say which of two equal zeros is meant.
    for further in (0, 1):
        flip(path, chunk_place(path, "relu4_1", 1) + further)

    def notes() -> list[str]:
        samples = page_values(report_of(tmp_path, spec), open_run(tmp_path), spec.manifest)["samples"]
        return [layer["note"] for sample in samples for layer in sample["layers"]]

    *whole, damaged = notes()
    assert whole == ["", "", ""]
    assert "layer relu4_1, row 1 (folder1/image é1.jpg) is damaged" in damaged
    monkeypatch.setattr(report_module, "LARGEST_ROW_BYTES", 1000)
    assert notes() == ["", "76.8 kB an image, too much to be read for this page"] * 2


@pytest.fixture
def small_picture(photographs: Path, tmp_path: Path) -> Callable[..., Any]:
    from pipeline.images.reading import thumbnail

    def make(name: str = "animals/chelsea.jpg", sha256: str | None = None, side_px: int = 100) -> Any:
        path = tmp_path / "picture"
        shutil.copy(photographs / name, path)
        return thumbnail(
            ImageRecord(0, path.name, str(path), "", 0), sha256 or hashlib.sha256(path.read_bytes()).hexdigest(), side_px
        )

    return make


def test_a_small_picture_is_the_image_made_smaller(small_picture: Callable[..., Any], photographs: Path) -> None:
    pixels = small_picture()
    with Image.open(photographs / "animals/chelsea.jpg") as image:
        expected = image.convert("RGB").resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.LANCZOS)
        assert max(pixels.shape[:2]) == 100
        assert pixels.shape[1] / pixels.shape[0] == pytest.approx(image.width / image.height, rel=0.02)
    # A JPEG was reduced while it was decoded.
    assert np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).mean() < 4


def test_a_small_picture_of_another_file_is_refused(
    small_picture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline.images import reading

    with pytest.raises(ImageError, match="changed: the file is not the one that the features were made from"):
        small_picture(sha256="0" * 64)
    monkeypatch.setattr(reading, "MAX_THUMBNAIL_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"too large: \d+ px, limit 1000 px"):
        small_picture()
    with pytest.raises(ImageError, match="missing: file not found"):
        reading.thumbnail(ImageRecord(0, "nothing", str(tmp_path / "nothing"), "", 0), "", 100)


# -- That no text of a user is taken for the page's own --------------------------------------------------------------------

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "' onload='alert(1)",
    "</title></style><b>",
    "a\nb\r\tc\x00\x1b[31m",
    "rtl\u202egpj.exe \u2066 \ufeff",
    "half \ud83d a pair",
    "&lt;b&gt; &amp;amp;",
    "]]><!-- -->",
    "https://example.org/a.jpg",
)


def replaced(value: Any, text: str) -> Any:
    """Gives the values of a page with another text for each ``plain``."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.replace("plain", text)
    if isinstance(value, Mapping):
        return {replaced(name, text): replaced(of, text) for name, of in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(each, text) for each in value)
    return value


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page of a run says whose texts are all ``plain``."""
    folder, names = tmp_path_factory.mktemp("plain") / "plain", [name for name in ATTRIBUTES if name != "mean_pixel"]
    spec = make_spec(4, {"relu1_1": (7, 7, 6)}, keys=[f"plain/{number}" for number in range(4)])
    spec = replace(spec, attributes={**ATTRIBUTES, **dict.fromkeys(names, "plain")})
    write_run(folder, spec, statuses={1: ImageStatus(1, "plain: it is plain", 0, 0, 1, "")})
    told = report_of(folder, spec, causes={"plain": 1}, skipped={"plain": 2}, versions={"plain": "plain"}, weights="plain")
    return page_values(told, open_run(folder), spec.manifest)


@pytest.mark.parametrize("text", EVIL)
def test_no_text_of_a_user_gets_out_of_its_place(text: str, values: dict[str, Any]) -> None:
    attacks = replaced({name: value for name, value in values.items() if name != "attributes"}, text)
    attacks["attributes"] = {
        name: text if isinstance(value, str) and value == "plain" else value for name, value in values["attributes"].items()
    }
    report = values["report"]
    attacks["report"] = replace(report, skipped={text: 2}, versions={text: text}, weights=text, causes={text: 1})
    harmless, attacked = (Page(render(given).encode("utf-8").decode("utf-8")) for given in (values, attacks))
    assert attacked.wrong == harmless.wrong == []
    assert [name for name, _ in attacked.elements] == [name for name, _ in harmless.elements]
    assert [set(of) for _, of in attacked.elements] == [set(of) for _, of in harmless.elements]
    hidden = {chr(code) for code in (*range(9), *range(11, 32), 0x202E, 0x2066, 0xFEFF)}
    assert not hidden & set(attacked.text)
    (policy,) = [of["content"] for of in attacked.of("meta") if of.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def test_what_cannot_be_seen_is_spelt_out_and_long_names_lose_their_middle(values: dict[str, Any]) -> None:
    for text, expected in (("a\nb", "a\\nb"), ("x\u202ey", "x\\u202ey"), ("\ud83d", "\\ud83d"), ("日本 é", "日本 é")):
        assert shown(text) == expected
    assert len(shown("n" * 100_000)) == 301
    long = "<&\"'>" * 2000
    text = render({**values, "causes": [(long, 80_000)] * 12, "failures": [(long, long)] * 24})
    assert len(text.encode()) < 600_000
    assert "80,000" in Page(text).text


def test_a_run_of_failed_images_alone_has_a_page(values: dict[str, Any]) -> None:
    layers = [{"name": "relu1_1", "shape": (7, 7, 6), "channels": 6, "statistics": Tally(6).statistics(0)}]
    found = Page(render({**values, "samples": [], "layers": layers}))
    assert found.wrong == []
    assert "Samples" not in found.text
    assert "Histograms" not in found.text


# -- Pictures and bars ---------------------------------------------------------------------------------------------------------


def test_a_map_is_dark_where_least_and_bright_where_most() -> None:
    for values, expected in (([[0, 5], [10, np.nan]], [[0, 128], [255, 0]]), ([[3, 3]], [[0, 0]])):
        (one,) = make_maps("x", [(0, np.array(values, np.float32)[:, :, None])], (*np.shape(values), 1), [0])
        kind, _, data = str(map_picture(one)).partition(",")
        assert kind == "data:image/png;base64"
        assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).tolist() == expected


class FakeLayer:
    """A layer of which one row is there."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.name, self.values = "conv1_1", values

    def shape_of(self, row: int) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, row: int) -> NDArray[np.float32]:
        return self.values


def test_samples_are_channel_0_and_the_most_active_ones_and_small() -> None:
    # Before the ReLU: of the first the mean is least, of what is above 0 it is greatest.
    halves = np.repeat([[3.0], [-9.0]], 2, axis=1)
    values = np.stack([np.zeros((2, 2)), np.full((2, 2), 0.5), halves, np.full((2, 2), 0.4)], axis=2).astype(np.float32)
    assert [one.channels for one in sample_maps(FakeLayer(values), 0)] == [[0], [2], [1]]  # type: ignore[arg-type]
    large = np.arange(240 * 113, dtype=np.float32).reshape(240, 113, 1)
    (one,) = sample_maps(FakeLayer(large), 0)  # type: ignore[arg-type]
    assert one.values.shape == (80, 38)
    assert one.values[0, 0] == large[:3, :3].mean()
    assert (one.low, one.high) == (0, 240 * 113 - 1)


def statistics_of(values: NDArray[np.float32]) -> LayerStatistics:
    tally = Tally(values.shape[-1])
    tally.add(values[None])
    return tally.statistics(1)


def test_a_histogram_has_a_bar_for_each_power_of_two() -> None:
    values = np.array([[1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 40.0, 0.0]], np.float32)
    bars, labels = histogram(statistics_of(values)) or ([], [])
    assert bars == [0.0] * 10 + [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert labels == ["0", "0.25", "64"]
    both, labels = histogram(statistics_of(np.concatenate([values, -values], axis=1))) or ([], [])
    assert both == bars[::-1] + bars
    assert labels == ["−64", "0", "64"]
    # What is smaller than the bars reach is in the one next to zero.
    bars, _ = histogram(statistics_of(np.array([[1e-9, 1e-8, 1000.0]], np.float32))) or ([], [])
    assert bars == [1.0] + [0.0] * 14 + [0.5]
    for value in (1e-18, 3e38, -3e38, 5.0):
        bars, _ = histogram(statistics_of(np.full((3, 2), value, np.float32))) or ([], [])
        assert sum(bars) == 1.0
    assert histogram(statistics_of(np.full((3, 2), 1e-30, np.float32))) is None
