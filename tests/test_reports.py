"""When report.json and report.html are written, what the page of a stored run says, and the samples in it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import report as report_module
from pipeline.config import defaults
from pipeline.errors import ImageError
from pipeline.formatting import count_causes, words_for_number
from pipeline.job import write_reports
from pipeline.progress import STAGES
from pipeline.records import ImageRecord, ImageStatus, RunSpec
from pipeline.report import EXAMPLES, Report, most_active_map, render_page
from pipeline.store.digests import Digests
from pipeline.store.reader import open_run
from pipeline.store.verification import verify_folder

from .damage import chunk_place, flip, write_companions
from .pages import Page
from .stored_runs import make_spec, make_values, write_run
from .test_seen import sha256_of

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
    given: dict[str, Any] = {
        **{"device": "cpu", "bytes_raw": 1000, "bytes_stored": 250, "peak_memory_bytes": 1 << 30, "images_per_second": 12.5},
        **{"folder": str(folder), "index": str(folder / "features.h5"), "network": "vgg19", "weights": "a file"},
        **{"run_digest": spec.digest, "rows": rows, "rows_now": rows, "failed": 2, "causes": {"truncated after 17 bytes": 2}},
        **{"skipped": {}, "seconds_by_stage": {name: 1.5 + number for number, name in enumerate(STAGES)}, "part": ""},
        "layers": {feature.layer.name: feature.shape for feature in spec.features},
        "options": defaults() | {"data.dir": "imgs <1>", "layers": ["conv1_1", "relu4_1"]},
        "versions": {"numpy": "2.4"},
    }
    return Report(**given | changes)


def rendered(folder: Path, spec: RunSpec, **changes: Any) -> Page:
    return Page(render_page(report_of(folder, spec, **changes), open_run(folder), spec.manifest))


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
    ):
        assert text in found.text, text
    assert "Untrained" not in found.text
    statistics = open_run(folder).statistics["relu4_1"]
    assert statistics.rows == 8
    assert f"to {words_for_number(statistics.maximum)}" in found.text
    assert len(found.of("img")) == 6 * 2


def test_a_run_that_has_nothing_to_do_rewrites_neither(run: tuple[Path, RunSpec]) -> None:
    folder, spec = run
    before = state(folder)
    write_reports(folder, spec, report_of(folder, spec, rows_now=0), is_unchanged=True)
    assert state(folder) == before
    # But those of another state of the run.
    write_reports(folder, spec, report_of(folder, spec, rows_now=0, failed=1), is_unchanged=True)
    assert all(content != before[name] for name, content in state(folder).items())


def test_a_page_that_is_gone_or_damaged_is_made(run: tuple[Path, RunSpec]) -> None:
    folder, spec = run
    for spoil in (Path.unlink, lambda page: flip(page, 2000)):
        spoil(folder / "report.html")
        write_reports(folder, spec, report_of(folder, spec, rows_now=0, images_per_second=0.0), is_unchanged=True)
        assert verify_folder(folder, 1).count == 0


def test_failures_are_counted_by_cause_and_the_first_are_named(tmp_path: Path) -> None:
    spec = full_spec(60, shapes={"relu1_1": (1, 1, 3)}, images_per_shard=60)
    causes = [f"cause {row % 20}: of {row}" if row < 40 else "missing: file not found" for row in range(59)]
    write_run(tmp_path, spec, statuses={row: ImageStatus(row, cause, 0, 0, 1, "") for row, cause in enumerate(causes)})
    text = rendered(tmp_path, spec, failed=59, causes=count_causes(causes)).text
    assert "19 missing" in text
    assert f"and {59 - EXAMPLES} more; all are in /images/error" in text
    assert "image é23.jpg cause 3: of 23" in text
    assert "image é24.jpg" not in text


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_samples_are_spread_and_show_the_most_active_channel(tmp_path: Path, dtype: str) -> None:
    # Vectors have no pictures.
    spec = full_spec(12, shapes={"relu1_1": None, "fc6.l2": (5,)} if dtype == "float32" else {"relu1_1": None}, dtype=dtype)
    values = make_values(spec, {row: (30 + row, 40) for row in range(12)})
    for row in range(12):
        values["relu1_1"][row][..., 1] += 3
    write_run(tmp_path, spec, failed=[0, 11], values=values)
    found = rendered(tmp_path, spec)
    assert [int(row) for row in re.findall(r"row (\d+),", found.text)] == [1, 3, 5, 6, 8, 10]
    assert found.text.count("relu1_1, channel 1") == 6
    assert "fc6" not in found.text.partition("Samples")[2].partition("What was run")[0]


def test_a_map_is_dark_where_least_and_bright_where_most() -> None:
    # Before the ReLU: of what is above 0 the mean of the third is greatest.
    values = np.stack([np.full((2, 2), -9.0), np.full((2, 2), 0.4), [[3, -1], [1, 3]]], axis=2).astype(np.float32)

    def pixels(of: Any) -> tuple[int, Any]:
        channel, picture = most_active_map(of)
        return channel, np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/png;base64,")))))

    for of, expected in ((values, (2, [[255, 0], [128, 255]])), (values[:, :, :2], (1, [[0, 0], [0, 0]]))):
        assert (pixels(of)[0], pixels(of)[1].tolist()) == expected
    assert pixels(np.ones((240, 113, 1), np.float32))[1].shape == (112, 53)


def test_a_row_that_is_too_large_or_damaged_is_said_where_its_map_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = full_spec(2)
    write_run(tmp_path, spec)
    path = tmp_path / "shards" / spec.shards()[0].file_name
    # Two of them, since a bit may say which of two equal zeros is meant.
    for further in (0, 1):
        flip(path, chunk_place(path, "relu4_1", 1) + further)

    text = rendered(tmp_path, spec).text
    assert text.count(f"relu4_1: {str(path)[:20]}") == 1
    assert len(re.findall(r"channel \d", text)) == 3
    monkeypatch.setattr(report_module, "LARGEST_ROW_BYTES", 1000)
    assert rendered(tmp_path, spec).text.count("relu4_1: 76.8 kB an image, too much to be read for this page") == 2


def test_a_small_picture_is_the_image_made_smaller(photographs: Path) -> None:
    from pipeline.images import reading

    path = photographs / "animals/chelsea.jpg"
    pixels = reading.thumbnail(ImageRecord(0, path.name, str(path), "", 0), sha256_of(path), 100)
    expected = np.asarray(Image.open(path).resize((100, len(pixels)), Image.Resampling.LANCZOS))
    assert pixels.shape == (66, 100, 3)
    # A JPEG was reduced while it was decoded.
    assert np.abs(pixels.astype(int) - expected).mean() < 4


# -- That no text of a user is taken for the page's own --------------------------------------------------------------------

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "' onload='alert(1)",
    "</title></style><b>",
    "a\nb\r\tc\x00\x1b[31m",
    "rtl\u202egpj.exe \u2066 \ufeff",
    "&lt;b&gt; &amp;amp;",
    "]]><!-- -->",
    "https://example.org/a.jpg",
)


def test_no_text_of_a_user_gets_out_of_its_place(tmp_path: Path) -> None:
    pages = []
    for name, texts in (("plain", ["plain"] * len(EVIL)), ("evil", EVIL)):
        spec = make_spec(len(EVIL), {"relu1_1": (7, 7, 6)}, keys=[f"{row}/{text}" for row, text in enumerate(texts)])
        all_of_them = " ".join(texts)
        attributes = {key: all_of_them if isinstance(value, str) else value for key, value in ATTRIBUTES.items()}
        spec = replace(spec, attributes=attributes)
        failed = {row: ImageStatus(row, f"{text}: {text}", 0, 0, 1, "") for row, text in enumerate(texts) if row % 2}
        write_run(tmp_path / name, spec, statuses=failed)
        told = {name: dict(zip(map("{}{}".format, range(99), texts), [1] * 99, strict=False)) for name in ("causes", "skipped")}
        pages.append(rendered(tmp_path / name, spec, versions=dict(told["causes"]), weights=all_of_them, **told))
    harmless, attacked = pages
    assert attacked.wrong == harmless.wrong == []
    assert [(name, set(of)) for name, of in attacked.elements] == [(name, set(of)) for name, of in harmless.elements]
    hidden = {chr(code) for code in (*range(9), *range(11, 32), 0x202E, 0x2066, 0xFEFF)}
    assert not hidden & set(attacked.text)
    (policy,) = [of["content"] for of in attacked.of("meta") if of.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def test_a_run_of_failed_images_alone_has_a_page(tmp_path: Path) -> None:
    spec = full_spec(2)
    write_run(tmp_path, spec, failed=[0, 1])
    found = rendered(tmp_path, spec)
    assert found.wrong == []
    assert "Samples" not in found.text
    assert "conv1_15 × 4 × 3– to –– ± ––0" in found.text.replace("\n", "")
