"""The page of a run, held by parsing it: what it says, that it asks for nothing, and that no name gets out of its place."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from pipeline.figures import FeatureMap, make_maps
from pipeline.formatting import words_for_bytes, words_for_number, words_for_seconds, words_for_share
from pipeline.report import histogram, map_picture, render, sample_maps, shown
from pipeline.store.statistics import LayerStatistics, Tally

from .pages import Page, make_report

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


ATTRIBUTES = ("data_root", "weights", "weights_sha256", "preprocess", "compression", "run_digest", "created")
DEVICE = {"device": "gpu", "gpu": "NVIDIA H200", "precision": "tf32", "cuda": "12.5"}


def statistics_of(values: NDArray[np.float32]) -> LayerStatistics:
    tally = Tally(values.shape[-1])
    tally.add(values[None])
    return tally.statistics(1)


def relu_values() -> NDArray[np.float32]:
    return np.maximum(np.random.default_rng(0).standard_normal((7, 7, 6)).astype(np.float32) * 40, 0)


def map_of(values: NDArray[np.floating], channel: int = 0) -> FeatureMap:
    ends = float(np.nanmin(values)), float(np.nanmax(values))
    return FeatureMap("relu1_1", (*values.shape, 6), [channel], values.astype(np.float32), *ends, 0.0, 0, len(values))


def vector_of(values: NDArray[np.float32]) -> FeatureMap:
    return make_maps("relu2_1.avg", [(0, values)], values.shape, range(values.size))[0]


def make_contents(number_of_layers: int = 2, number_of_samples: int = 2, text: str = "plain", **changes: Any) -> dict[str, Any]:
    names = [f"relu{number}_1" for number in range(1, number_of_layers + 1)]
    values = relu_values()
    maps: list[Any] = [(one, map_picture(one)) for one in (map_of(values[..., channel], channel) for channel in (0, 3, 4))]
    vector = vector_of(np.linspace(-1, 2, 300, dtype=np.float32))
    sample = {
        **{"key": text, "label": text, "height": 200, "width": 300, "photo": maps[0][1], "note": ""},
        "layers": [
            {"name": names[0], "maps": maps, "note": ""},
            {"name": "big", "maps": [], "note": f"943.7 MB, {text}"},
            {"name": "relu2_1.avg", "maps": [(vector, map_picture(vector))], "note": ""},
        ],
    }
    contents = {
        "name": text,
        "report": make_report(
            **{"skipped": {text: 2}, "versions": {"numpy": text}, "seconds_by_stage": {"read": 2.0, "network": 6.0}},
        ),
        "command": Markup.escape(f"python -m pipeline.run data.dir={shown(text)}"),
        "attributes": dict.fromkeys(ATTRIBUTES, text) | {"mean_pixel": np.array([123.68, 116.779, 103.939])} | DEVICE,
        "dtype": "float32",
        "shards": 3,
        "causes": [(text, 7)],
        "failures": [(text, f"{text}: it is {text}")],
        "layers": [{"name": name, "shape": (7, 7, 6), "channels": 6, "statistics": statistics_of(values)} for name in names],
        "samples": [{**sample, "row": row} for row in range(number_of_samples)],
        "sampled_layers": [names[0]],
    }
    return {**contents, **changes}


def read(contents: dict[str, Any]) -> Page:
    # As it is written.
    return Page(render(contents).encode("utf-8").decode("utf-8"))


def test_the_page_is_whole_and_says_what_it_is_told() -> None:
    found = read(make_contents())
    assert found.wrong == []
    for text in (
        "100 images, relu1_1, relu2_1 of vgg19",
        "rows100 (93 ok, 7 failed)",
        "rate12.50 images/s on the cpu",
        "stored250 B, 25% of raw",
        "memory1.1 GB at the peak",
        "The limit: network. What helps: a GPU, an earlier layer, a smaller data.size.",
        "6.0 s",
        "8.0 s of wall time, by what the main thread did or waited for. Threads beside it took, added up, 3.2 s to encode and",
        "7 × 7 × 6",
        "dead channels0 of 6",
        "and 6 more; all are in /images/error of features.h5",
        "of 1 of 2 layers channel 0",
        "row 1, 300 × 200 px, label plain",
        "channel 3",
        "300 components",
        "943.7 MB, plain",
        "python -m pipeline.run data.dir=plain",
        "mean colour123.680, 116.779, 103.939",
        "valuesfloat32, compression plain",
        "devicegpu, NVIDIA H200, tf32, CUDA 12.5",
        "Passed over while listing: 2 plain.",
    ):
        assert text in found.text, (text, found.text)
    statistics = statistics_of(relu_values())
    assert f"range0 to {statistics.maximum:.4g}" in found.text
    assert f"zeros{100 * statistics.zero_share:.1f} %" in found.text
    assert len(found.of("img")) == 2 * 4
    assert [of["aria-label"] for of in found.of("svg")] == ["histogram of relu1_1", "histogram of relu2_1"]
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
    for text, expected in (("a\nb", "a\\nb"), ("x\u202ey", "x\\u202ey"), ("\ud83d", "\\ud83d"), ("日本 é", "日本 é")):
        assert shown(text) == expected
    assert len(shown("n" * 100_000)) == 301
    long = "<&\"'>" * 2000
    text = render(make_contents(causes=[(long, 80_000)] * 12, failures=[(long, long)] * 24))
    assert len(text.encode()) < 600_000
    assert "80,000" in Page(text).text


def test_a_run_of_failed_images_alone_has_a_page() -> None:
    layers = [{"name": f"relu{n}_1", "shape": (7, 7, 6), "channels": 6, "statistics": Tally(6).statistics(0)} for n in (1, 2)]
    found = read(make_contents(number_of_samples=0, layers=layers))
    assert found.wrong == []
    assert "Samples" not in found.text
    assert "Histograms" not in found.text


def test_a_map_is_dark_where_least_and_bright_where_most() -> None:
    for values, expected in (([[0, 5], [10, np.nan]], [[0, 128], [255, 0]]), ([[3, 3]], [[0, 0]])):
        kind, _, data = str(map_picture(map_of(np.array(values, np.float32)))).partition(",")
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
    for shape in ((1, 1, 1000), (1000,)):
        (vector,) = sample_maps(FakeLayer(np.arange(1000, dtype=np.float32).reshape(shape)), 0)  # type: ignore[arg-type]
        assert vector.values.tolist() == list(range(1000))


def test_numbers_are_short_and_shares_are_no_rounder_than_true() -> None:
    assert [words_for_number(value) for value in (0.0, -3.25, 12.3456, 65504.4, 6.5e7, 1e-7, math.inf)] == [
        *("0", "−3.25", "12.35", "65504", "6.5e+07", "1e−07", "–"),
    ]
    assert [words_for_share(value) for value in (0.0, 1e-9, 0.012, 0.5, 0.99999, 1.0, math.nan)] == [
        *("0 %", "<0.1 %", "1.2 %", "50.0 %", ">99.9 %", "100 %", "–"),
    ]
    assert [words_for_bytes(count) for count in (999, 1234, 22.5e12)] == ["999 B", "1.2 kB", "22.5 TB"]
    assert [words_for_seconds(seconds) for seconds in (4.9, 200, 26400)] == ["0:00:04", "0:03:20", "7:20:00"]


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
