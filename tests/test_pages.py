"""The page of a run, held by parsing it: what it says, that it asks for nothing, and that no name gets out of its place."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.feature_maps import FeatureMap
from pipeline.formatting import words_for_number, words_for_share
from pipeline.report import Report
from pipeline.report_page import PICTURE_BYTES, Sample, _maps, coloured, histogram, render, shown
from pipeline.store.statistics import LayerStatistics, Tally

from .pages import Page

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
STAGES = {"read": ("waiting for images", ": ", "a faster disk"), "network": ("the network itself", ": ", "a GPU")}


def statistics_of(values: NDArray[np.float32]) -> LayerStatistics:
    tally = Tally(values.shape[-1])
    tally.add(values)
    return tally.statistics(1)


def relu_values() -> NDArray[np.float32]:
    return np.maximum(np.random.default_rng(0).standard_normal((7, 7, 6)).astype(np.float32) * 40, 0)


def map_of(values: NDArray[np.floating], channel: int = 0) -> FeatureMap:
    ends = float(np.nanmin(values)), float(np.nanmax(values))
    return FeatureMap("relu1_1", channel, (*values.shape, 6), values.astype(np.float32), *ends, 0.0, 0, len(values))


def report_of(text: str = "plain") -> Report:
    seconds, threads = {"read": 2.0, "network": 6.0}, {"encode": 3.25, "write": 1.0}
    counts = {"rows": 100, "failed": 7, "causes": {}, "skipped": {text: 2}, "rows_now": 100, "rows_added": 0}
    stored = {"bytes_raw": 1000, "bytes_stored": 250, "peak_memory_bytes": 1, "versions": {"numpy": text}}
    return Report(
        *("run", "features.h5", "cpu", "vgg19", "a file"),
        *({}, ""),
        **counts,
        seconds_by_stage=seconds,
        images_per_second=12.5,
        threads_seconds=threads,
        **stored,
    )


def make_contents(number_of_layers: int = 2, number_of_samples: int = 2, text: str = "plain", **changes: Any) -> dict[str, Any]:
    names = [f"relu{number}_1" for number in range(1, number_of_layers + 1)]
    values = relu_values()
    maps = tuple(map_of(values[..., channel], channel) for channel in (0, 3, 4))
    picture = np.full((20, 30, 3), 77, np.uint8)
    contents = {
        "name": text,
        "report": report_of(text),
        "stages": STAGES,
        "command": f"python -m pipeline.run data.dir={text}",
        "warning": text,
        "changed": {"data.dir": (text, "null")},
        "unchanged": {"data.size": "224"},
        "facts": {"weights": text},
        "causes": [(text, 7, [(text, f"{text}: it is {text}")])],
        "figures": {"images": "100"},
        "layers": [{"name": name, "shape": (7, 7, 6), "channels": 6, "statistics": statistics_of(values)} for name in names],
        "samples": tuple(
            Sample(row, text, text, (200, 300), picture, "", {names[0]: maps}, {}) for row in range(number_of_samples)
        ),
        "sampled_layers": (names[0],),
    }
    return {**contents, **changes}


def read(contents: dict[str, Any]) -> Page:
    text = render(contents)
    # As it is written.
    return Page(text.encode("utf-8").decode("utf-8"))


def test_the_page_is_whole_and_says_what_it_is_told() -> None:
    found = read(make_contents())
    assert found.wrong == []
    for text in (
        "100 images, relu1_1, relu2_1 of vgg19",
        "The limit: network. What helps: a GPU.",
        "6.0 s",
        "8.0 s of wall time, by what the main thread did or waited for. Threads beside it took, added up, 3.2 s to",
        "7 × 7 × 6",
        "dead channels0 of 6",
        "and 6 more; all are in /images/error of features.h5",
        "of 1 of 2 layers channel 0",
        "row 1, 300 × 200 px, label plain",
        "channel 3",
        "python -m pipeline.run data.dir=plain",
        "Passed over while listing: 2 plain.",
    ):
        assert text in found.text, (text, found.text)
    statistics = statistics_of(relu_values())
    assert f"range0 to {statistics.maximum:.4g}" in found.text
    assert f"zeros{100 * statistics.zero_share:.1f} %" in found.text
    assert len(found.of("img")) == 2 * 4
    assert sum(of.get("class") == "bars" for of in found.of("div")) == 2
    policy = next(of["content"] for of in found.of("meta") if of.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert found.content == read(make_contents()).content


@pytest.mark.parametrize("text", EVIL)
def test_no_text_of_a_user_gets_out_of_its_place(text: str) -> None:
    harmless, attacked = read(make_contents()), read(make_contents(text=text))
    assert attacked.wrong == []
    assert [name for name, _ in attacked.elements] == [name for name, _ in harmless.elements]
    assert [set(of) for _, of in attacked.elements] == [set(of) for _, of in harmless.elements]
    hidden = {chr(code) for code in (*range(9), *range(11, 32), 0x202E, 0x2066, 0xFEFF)}
    assert not hidden & set(attacked.text)


def test_what_cannot_be_seen_is_spelt_out_and_long_names_lose_their_middle() -> None:
    assert shown("a\nb") == "a\\nb"
    assert shown("x\u202ey") == "x\\u202ey"
    assert shown("\ud83d") == "\\ud83d"
    assert shown("日本 é") == "日本 é"
    assert len(shown("n" * 100_000)) == 202


def test_neither_a_million_failures_nor_pictures_make_a_large_page() -> None:
    long = "<&\"'>" * 2000
    causes = [(long, 80_000, [(long, long)] * 12)] * 13
    text = render(make_contents(causes=causes))
    assert len(text.encode()) < 600_000
    assert "80,000" in Page(text).text
    maps = {f"relu{n}_1": (map_of(np.random.default_rng(0).random((112, 112))),) * 3 for n in range(4)}
    photo = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    found = read(make_contents(samples=tuple(Sample(row, "k", "", (1, 1), photo, "", maps, {}) for row in range(20))))
    assert len(found.content) < PICTURE_BYTES * 4 / 3 + 200_000
    assert "left out, for the size of this page" in found.text
    assert found.wrong == []


def test_a_run_of_failed_images_alone_has_a_page() -> None:
    layers = [{"name": f"relu{n}_1", "shape": (7, 7, 6), "channels": 6, "statistics": Tally(6).statistics(0)} for n in (1, 2)]
    found = read(make_contents(number_of_samples=0, layers=layers))
    assert found.wrong == []
    assert "Samples" not in found.text
    assert "Histograms" not in found.text


def test_what_a_sample_lacks_is_said() -> None:
    sample = Sample(3, "k", "", (200, 300), None, "no picture: file <not> found", {}, {"relu1_1": "943.7 MB an image"})
    found = read(make_contents(samples=(sample,)))
    assert "no picture: file <not> found" in found.text
    assert "943.7 MB an image" in found.text
    assert found.wrong == []


def pixels_of(data: bytes) -> list[Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tolist()


def test_a_map_is_dark_where_least_and_bright_where_most_and_data_of_the_page() -> None:
    values = np.array([[0.0, 5.0], [10.0, np.nan]], np.float32)
    assert pixels_of(coloured(map_of(values))) == [[[68, 1, 84], [33, 145, 140]], [[253, 231, 37], [128, 128, 128]]]
    assert pixels_of(coloured(map_of(np.full((2, 2), 3.0)))) == [[[68, 1, 84]] * 2] * 2
    contents = make_contents()
    sources = [str(of["src"]) for of in read(contents).of("img")]
    assert sources[0].startswith("data:image/jpeg;base64,")
    one = contents["samples"][0].maps["relu1_1"][0]
    assert base64.b64decode(sources[1].removeprefix("data:image/png;base64,")) == coloured(one)


def test_samples_are_channel_0_and_the_most_active_ones_and_small() -> None:
    # Before the ReLU: of the first the mean is least, of what is above 0 it is greatest.
    halves = np.repeat([[3.0], [-9.0]], 2, axis=1)
    values = np.stack([np.zeros((2, 2)), np.full((2, 2), 0.5), halves, np.full((2, 2), 0.4)], axis=2).astype(np.float32)
    assert [one.channel for one in _maps("conv1_1", values)] == [0, 2, 1]
    large = np.arange(240 * 113, dtype=np.float32).reshape(240, 113, 1)
    (one,) = _maps("conv1_1", large)
    assert one.pixels.shape == (80, 38)
    assert one.pixels[0, 0] == large[:3, :3].mean()
    assert (one.low, one.high) == (0, 240 * 113 - 1)
    (vector,) = _maps("fc8", np.arange(1000, dtype=np.float32).reshape(1, 1, -1))
    assert vector.channel is None
    assert vector.pixels.ravel().tolist() == list(range(1000))


def test_numbers_are_short_and_shares_are_no_rounder_than_true() -> None:
    assert [words_for_number(value) for value in (0.0, -3.25, 12.3456, 65504.4, 6.5e7, 1e-7, math.inf)] == [
        *("0", "−3.25", "12.35", "65504", "6.5e+07", "1e−07", "–"),
    ]
    assert [words_for_share(value) for value in (0.0, 1e-9, 0.012, 0.5, 0.99999, 1.0, math.nan)] == [
        *("0 %", "<0.1 %", "1.2 %", "50.0 %", ">99.9 %", "100 %", "–"),
    ]


def test_a_histogram_has_a_bar_for_each_power_of_two() -> None:
    values = np.array([[1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 40.0, 0.0]], np.float32)
    heights, labels = histogram(statistics_of(values)) or ([], [])
    assert heights == [0.0] * 10 + [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert labels == ["0", "0.25", "64"]
    signed, labels = histogram(statistics_of(np.concatenate([values, -values], axis=1))) or ([], [])
    assert signed == heights[::-1] + heights
    assert labels == ["−64", "0", "64"]
    # What is smaller than the bars reach is in the one next to zero.
    heights, _ = histogram(statistics_of(np.array([[1e-9, 1e-8, 1000.0]], np.float32))) or ([], [])
    assert heights == [1.0] + [0.0] * 14 + [0.5]


@pytest.mark.parametrize("value", [1e-18, 3e38, -3e38, 5.0])
def test_a_histogram_of_one_value_is_one_bar(value: float) -> None:
    heights, _ = histogram(statistics_of(np.full((3, 2), value, np.float32))) or ([], [])
    assert sum(heights) == 1.0
    assert histogram(statistics_of(np.full((3, 2), 1e-30, np.float32))) is None
