"""The page of a run, held by parsing it: what it says, that it asks for nothing, and that no name gets out of its place."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline import report_page
from pipeline.feature_maps import FeatureMap
from pipeline.report_page import Cause, coloured, count, histogram, number, render, share, shown
from pipeline.samples import Sample, _maps
from pipeline.statistics import LayerStatistics, Tally, gather

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


def statistics_of(values: NDArray[np.float32]) -> LayerStatistics:
    tally = Tally(values.shape[-1])
    tally.add(gather(values))
    return tally.statistics(1)


def relu_values(seed: int = 0) -> NDArray[np.float32]:
    return np.maximum(np.random.default_rng(seed).standard_normal((7, 7, 6)).astype(np.float32) * 40, 0)


def map_of(values: NDArray[np.floating], channel: int = 0, layer: str = "relu1_1") -> FeatureMap:
    ends = float(np.nanmin(values)), float(np.nanmax(values))
    return FeatureMap(layer, channel, (*values.shape, 6), values.astype(np.float32), *ends, 0.0, 0, len(values))


def make_contents(number_of_layers: int = 2, number_of_samples: int = 2, text: str = "plain", **changes: Any) -> dict[str, Any]:
    names = [f"relu{number}_1" for number in range(1, number_of_layers + 1)]
    values = relu_values()
    shown = tuple(map_of(values[..., channel], channel) for channel in (0, 3, 4))
    picture = np.full((20, 30, 3), 77, np.uint8)
    contents = {
        "name": text,
        "network": "vgg19",
        "command": f"python -m pipeline.run data.dir={text}",
        "warning": text,
        "changed": {"data.dir": (text, "null")},
        "unchanged": {"data.size": "224"},
        "facts": {"weights": text},
        "versions": {"numpy": text},
        "rows": 100,
        "causes": (Cause(text, 7, ((text, f"{text}: it is {text}"),)),),
        "skipped": {text: 2},
        "figures": {"images": "100"},
        "stages": [
            {"name": "read", "seconds": 2.0, "meaning": "waiting for images", "remedy": "a faster disk"},
            {"name": "network", "seconds": 6.0, "meaning": "the network itself", "remedy": "a GPU"},
        ],
        "bottleneck": "network",
        "threads_seconds": {"encode": 3.25, "write": 1.0},
        "layers": [{"name": name, "shape": (7, 7, 6), "channels": 6, "statistics": statistics_of(values)} for name in names],
        "samples": tuple(
            Sample(row, text, text, (200, 300), picture, "", {names[0]: shown}, {}) for row in range(number_of_samples)
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
        "6.0\u202fs",
        "8.0\u202fs of wall time, by what the main thread did or waited for. Threads beside it took, added up, 3.2\u202fs to",
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
    assert f"zeros{statistics.zero_share:.1%}".replace("%", "\u202f%") in found.text
    assert len(found.of("img")) == 2 * 4
    assert sum("histogram" in str(of.get("class")) for of in found.of("svg")) == 2
    policy = next(of["content"] for of in found.of("meta") if of.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@pytest.mark.parametrize("text", EVIL)
def test_no_text_of_a_user_gets_out_of_its_place(text: str) -> None:
    harmless, attacked = read(make_contents()), read(make_contents(text=text))
    assert attacked.wrong == []
    assert [name for name, _ in attacked.elements] == [name for name, _ in harmless.elements]
    assert [set(of) for _, of in attacked.elements] == [set(of) for _, of in harmless.elements]
    hidden = {chr(code) for code in (*range(9), *range(11, 32), 0x202E, 0x2066, 0xFEFF)}
    assert not hidden & set(attacked.text)


@given(text=st.text(alphabet=st.characters(exclude_categories=()), max_size=60))
def test_any_text_is_shown_as_it_is_or_spelt_out(text: str) -> None:
    spelt = shown(text)
    assert len(spelt) <= len(text.encode("unicode_escape").decode("ascii"))
    spelt.encode("utf-8")
    assert shown(spelt) == spelt
    if text.isascii() and text.isprintable():
        assert spelt == text


def test_what_cannot_be_seen_is_spelt_out_and_long_names_lose_their_middle() -> None:
    assert shown("a\nb") == "a\\nb"
    assert shown("x\u202ey") == "x\\u202ey"
    assert shown("\ud83d") == "\\ud83d"
    assert shown("日本 é 👩\u200d👩") == "日本 é 👩\u200d👩"
    assert len(shown("n" * 100_000)) == 202


def test_a_million_failures_make_no_long_page() -> None:
    long = "<&\"'>" * 2000
    causes = tuple(Cause(long, 80_000, tuple((long, long) for _ in range(12))) for _ in range(13))
    text = render(make_contents(causes=causes))
    assert len(text.encode()) < 600_000
    assert "80\u202f000" in Page(text).text


def test_pictures_never_make_a_large_page() -> None:
    noise = np.random.default_rng(0).random((112, 112))
    maps = {f"relu{n}_1": (map_of(noise),) * 3 for n in range(4)}
    photo = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    samples = tuple(Sample(row, "k", "", (1, 1), photo, "", maps, {}) for row in range(20))
    found = read(make_contents() | {"samples": samples})
    assert len(found.content) < 1_300_000
    assert "left out, for the size of this page" in found.text
    assert found.wrong == []


def test_thirty_six_layers_are_one_card_each() -> None:
    found = read(make_contents(36))
    assert sum(of.get("class") == "card" for of in found.of("article")) == 36
    assert "36 layers from relu1_1 to relu36_1 of vgg19" in found.text
    assert len(found.content) < 250_000


def test_a_run_without_anything_done_names_no_limit() -> None:
    found = read(make_contents(bottleneck=""))
    assert "The limit" not in found.text
    assert "Threads beside it" not in found.text
    assert "8.0\u202fs of wall time" in found.text


def test_a_run_of_failed_images_alone_has_a_page() -> None:
    layer = {"shape": (7, 7, 6), "channels": 6, "statistics": Tally(6).statistics(0)}
    found = read(make_contents(number_of_samples=0, rows=7, layers=[{**layer, "name": name} for name in ("relu1_1", "relu2_1")]))
    assert found.wrong == []
    assert "Samples" not in found.text
    assert "Histograms" not in found.text


def test_what_a_sample_lacks_is_said() -> None:
    sample = Sample(3, "k", "", (200, 300), None, "no picture: file <not> found", {}, {"relu1_1": "943.7 MB an image"})
    found = read(make_contents() | {"samples": (sample,)})
    assert "no picture: file <not> found" in found.text
    assert "943.7 MB an image" in found.text
    assert found.wrong == []


def pixels_of(data: bytes) -> list[Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tolist()


def test_a_map_is_dark_where_least_and_bright_where_most() -> None:
    values = np.array([[0.0, 5.0], [10.0, np.nan]], np.float32)
    found = pixels_of(coloured(map_of(values)))
    assert found == [[[68, 1, 84], [33, 144, 141]], [[253, 231, 37], [128, 128, 128]]]
    assert pixels_of(coloured(map_of(np.full((2, 2), 3.0)))) == [[[68, 1, 84]] * 2] * 2


def test_pictures_are_data_of_the_page() -> None:
    sources = [str(of["src"]) for of in read(make_contents()).of("img")]
    assert sources[0].startswith("data:image/jpeg;base64,")
    one = make_contents()["samples"][0].maps["relu1_1"][0]
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
    assert [number(value) for value in (0.0, -1.5, 12345.6, 3e-7, 2.5e9, math.inf, 0.12345)] == [
        *("0", "−1.5", "12346", "3.00e−7", "2.50e9", "–", "0.1235"),
    ]
    assert [share(value) for value in (0.0, 1.0, 0.5, 0.9999, 0.00001, 0.99999999, math.nan)] == [
        *("0\u202f%", "100\u202f%", "50.0\u202f%", "99.99\u202f%", "0.001\u202f%", "100.000\u202f%", "–"),
    ]
    assert count(1_040_000) == "1\u202f040\u202f000"


def drawn(values: NDArray[np.float32]) -> dict[str, Any]:
    found = histogram(statistics_of(values))
    assert found
    return found


def test_a_histogram_has_a_bar_for_each_power_of_two() -> None:
    values = np.array([[1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 40.0, 0.0]], np.float32)
    found = drawn(values)
    assert len(found["bars"]) == 6
    heights = [float(bar["height"]) for bar in found["bars"]]
    assert heights[0] == max(heights) == 2 * heights[1]
    assert {"0", "64"} <= {tick["text"] for tick in found["ticks"]}
    signed = drawn(np.concatenate([values, -values], axis=1))
    assert len(signed["bars"]) == 12
    assert {"−64", "0", "64"} <= {tick["text"] for tick in signed["ticks"]}


def test_a_value_beside_the_sample_is_not_said_to_be_zero() -> None:
    values = np.zeros((3, 2), np.float32)
    for value, said in ((0.0, "no value but zerorange"), (1.0, "no value beyond 2^−62 in the sample")):
        values[0, 0] = value
        layer = {"name": "a", "shape": (1, 3, 2), "channels": 2, "statistics": statistics_of(values)}
        assert said in read(make_contents(layers=[layer])).text.replace("\n", "")


@pytest.mark.parametrize("value", [1e-18, 3e38, -3e38, 5.0])
def test_a_histogram_of_one_value_is_one_bar(value: float) -> None:
    found = drawn(np.full((3, 2), value, np.float32))
    (bar,) = found["bars"]
    assert 0.0 <= float(bar["x"]) <= report_page.WIDTH


def test_what_is_too_small_for_a_histogram_has_none() -> None:
    assert histogram(statistics_of(np.full((3, 2), 1e-30, np.float32))) is None


def test_the_same_contents_make_the_same_page() -> None:
    assert render(make_contents()) == render(make_contents())
    assert report_page.PICTURE_BYTES * 4 / 3 < 1_200_000
