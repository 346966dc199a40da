"""JPEGs by vector code: the pixels of libjpeg-turbo, and nothing that it would not take."""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images import decode, jpeg_decoder
from pipeline.images.decode import decode_image
from pipeline.images.jpeg_decoder import decode_baseline, prepare_decoder
from pipeline.images.jpeg_header import read_header

from .jpeg_maker import END, ZEROS, jpeg_of, random_jpeg, words_of
from .jpeg_oracle import pixels_of_low_frequencies, read_coefficients

PHOTOGRAPH = min((Path(__file__).parent / "photographs").rglob("*.jpg"))
RATIOS = (1, 2, 4, 8)


@pytest.fixture(autouse=True, scope="module")
def _prepared() -> Iterator[None]:
    before = list(jpeg_decoder._prepared)
    prepare_decoder()
    yield
    # Other tests of this process choose for themselves.
    jpeg_decoder._prepared[:] = before


def picture(height: int, width: int, seed: int, kind: str) -> Image.Image:
    draw = np.random.default_rng(seed)
    if kind == "noise":
        values = draw.integers(0, 256, (height, width, 3))
    elif kind == "flat":
        values = np.broadcast_to(draw.integers(0, 256, 3), (height, width, 3))
    elif kind == "extreme":
        values = draw.integers(0, 2, (height, width, 3)) * 255
    else:
        waves = np.sin(np.arange(width) * draw.uniform(0, 0.3)) + np.cos(np.arange(height) * draw.uniform(0, 0.3))[:, None]
        values = (waves[..., None] * draw.uniform(20, 60, 3) + 128 + draw.normal(0, 4, (height, width, 3))).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def ours(data: bytes, ratio: int = 1) -> NDArray[np.uint8] | None:
    header = read_header(data)
    assert header is not None
    assert header.components
    return decode_baseline(data, header, ratio)


@st.composite
def encoded(draw: st.DrawFn) -> tuple[str, bytes]:
    """Gives a kind of picture, and one of it in a file of any options that an encoder has."""
    kind = draw(st.sampled_from(["noise", "flat", "extreme", "waves"]))
    image = picture(draw(st.integers(1, 80)), draw(st.integers(1, 80)), draw(st.integers(0, 1000)), kind)
    restarts = [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}, {"restart_marker_blocks": 3}]
    options: dict[str, object] = {"quality": draw(st.integers(1, 100)), "optimize": draw(st.booleans())}
    options |= draw(st.sampled_from(restarts))
    subsampling = draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "grey"]))
    if subsampling == "grey":
        return kind, jpeg(image.convert("L"), **options)
    return kind, jpeg(image, subsampling=subsampling, **options)


@given(encoded())
@settings(max_examples=200, deadline=None)
def test_the_pixels_are_those_of_libjpeg_turbo(file: tuple[str, bytes]) -> None:
    kind, data = file
    found = ours(data)
    if kind == "extreme" and found is None:
        return  # Too large for what is known not to overflow.
    assert found is not None
    np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(data, "RGB"))
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def unskipped(data: bytes, ratio: int) -> NDArray[np.uint8] | None:
    """Gives the same where no coefficient is passed over unread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg_decoder, "_KEPT", dict.fromkeys(jpeg_decoder._KEPT, 63))
        # Not what is remembered of the header.
        patch.setattr(jpeg_decoder, "_laid_out", jpeg_decoder._Layout)
        return ours(data, ratio)


@given(encoded(), st.sampled_from(RATIOS[1:]))
@settings(max_examples=150, deadline=None)
def test_fewer_pixels_are_those_of_the_lowest_frequencies(file: tuple[str, bytes], ratio: int) -> None:
    kind, data = file
    found = ours(data, ratio)
    if kind == "extreme" and found is None:
        return  # Where chroma keeps all its samples, as above.
    assert found is not None
    expected = pixels_of_low_frequencies(read_coefficients(data), ratio)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 4.0
    assert np.abs(found - expected).mean() <= 1.0
    np.testing.assert_array_equal(found, unskipped(data, ratio))


def check_random_jpegs(seed: int, count: int) -> None:
    choose = random.Random(seed)
    accepted = 0
    for _ in range(count):
        data = random_jpeg(choose)
        whole = ours(data)
        is_zero = data[data.index(b"\xff\xdb") + 5] == 0
        for ratio in RATIOS[1:]:
            found, slow = ours(data, ratio), unskipped(data, ratio)
            assert (found is None) == (slow is None), data.hex()
            if is_zero:
                # Nothing overflows, so that codes alone decide.
                assert (found is None) == (whole is None), data.hex()
            if found is not None and slow is not None:
                np.testing.assert_array_equal(found, slow, data.hex())
                accepted += 1
    assert accepted > count


def test_codes_that_no_encoder_makes_are_passed_over_as_they_are_read() -> None:
    check_random_jpegs(0, 300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_codes_that_no_encoder_makes_are_passed_over_as_they_are_read(seed: int) -> None:
    check_random_jpegs(seed, 6000)


@pytest.mark.parametrize("threes", range(12))
def test_a_block_that_ends_with_its_last_place_is_told_from_one_with_an_end(threes: int) -> None:
    """Sixteen zeros have a code of one bit, so that what follows a block would go as far as an end does, were it part of it."""
    dc = [0, 3] + [0] * 14, [0, 1, 2]
    ac = [1, 1, 1, 1] + [0] * 12, [ZEROS, 0x01, END, 0x21]
    first, others = words_of(dc), words_of(ac)
    one, three = others[0x01] + "1", others[0x21] + "1"
    for order in ([one] * (62 - 3 * threes) + [three] * threes, [three] * threes + [one] * (62 - 3 * threes)):
        full = first[0] + "".join(order) + one
        data = jpeg_of(16, 8, dc, ac, [full + first[2] + "10" + others[ZEROS] * 3 + one + others[END]])
        assert ours(data) is not None
        for ratio in RATIOS[1:]:
            found = ours(data, ratio)
            assert found is not None
            np.testing.assert_array_equal(found, unskipped(data, ratio))


def test_reducing_the_file_is_near_to_reducing_the_picture() -> None:
    """Nearer than means of neighbouring samples are, which libjpeg-turbo gives."""
    with Image.open(PHOTOGRAPH) as photograph:
        whole = photograph.convert("RGB").crop((0, 0, 480, 320))
    data = jpeg(whole, quality=90)
    for ratio in (2, 4):
        sides = 480 // ratio, 320 // ratio
        target = sides[0] // 2 - 3, sides[1] // 2 - 5
        exact = np.asarray(Image.open(io.BytesIO(data)).resize(target, Image.Resampling.BILINEAR), np.int64)
        means = simplejpeg.decode_jpeg(data, "RGB", min_height=sides[1], min_width=sides[0])
        assert means.shape[:2] == sides[::-1]
        found = ours(data, ratio)
        assert found is not None
        errors = [
            np.abs(np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BILINEAR)) - exact).mean()
            for pixels in (found, means)
        ]
        assert errors[0] < errors[1] < 1


def test_pixels_lie_in_the_memory_that_is_given() -> None:
    data, buffer = jpeg(picture(50, 60, 2, "waves")), np.zeros(50 * 60 * 3 + 100, np.uint8)
    header = read_header(data)
    assert header is not None
    found = decode_baseline(data, header, 1, buffer)
    assert found is not None
    assert np.shares_memory(found, buffer)
    np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(data, "RGB"))
    assert not buffer[50 * 60 * 3 :].any()


def test_threads_do_not_disturb_one_another() -> None:
    files = [jpeg(picture(40 + 30 * number, 200 - 20 * number, number, "waves")) for number in range(4)]
    expected = [simplejpeg.decode_jpeg(data, "RGB") for data in files]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(40):
            if not np.array_equal(ours(files[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


WHOLE = jpeg(picture(48, 64, 3, "waves"), restart_marker_blocks=5)
SCAN = WHOLE.index(b"\xff\xda") + 14
BROKEN = {
    "no end": WHOLE[:-2],
    "cut": WHOLE[:-40],
    "a byte too many": WHOLE[:-2] + b"\x00" + WHOLE[-2:],
    "a restart too early": WHOLE[:SCAN] + b"\xff\xd0" + WHOLE[SCAN:],
    "restarts in another order": WHOLE.replace(b"\xff\xd1", b"\xff\xd2"),
    "a restart left out": WHOLE.replace(b"\xff\xd1", b""),
    "another marker": WHOLE.replace(b"\xff\xd1", b"\xff\xfe"),
    "ones": WHOLE[:SCAN] + b"\xff\x00" * 200 + b"\xff\xd9",
    "nothing": WHOLE[:SCAN] + b"\xff\xd9",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_scan_that_is_not_as_it_should_be_is_left_to_others(name: str) -> None:
    for ratio in RATIOS:
        assert ours(WHOLE, ratio) is not None
        assert ours(BROKEN[name], ratio) is None


@pytest.mark.parametrize("factor", [0, 90, 128, 255])
def test_numbers_that_may_overflow_are_left_to_others(factor: int) -> None:
    data = bytearray(jpeg(picture(40, 40, 8, "noise"), quality=100, subsampling=0))
    for place in (data.index(b"\xff\xdb") + 5, data.index(b"\xff\xdb", 60) + 5):
        data[place + 1 : place + 64] = bytes([factor] * 63)
    found = ours(bytes(data))
    assert (found is None) == (factor > 0)
    if found is not None:
        np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(bytes(data), "RGB"))


def test_a_product_that_is_nothing_in_sixteen_bits_is_seen() -> None:
    """Of 512 and 128, beside a first coefficient of 8192: libjpeg-turbo looks at the numbers before they are multiplied."""
    header = jpeg(Image.new("L", (8, 8)), quality=50)
    table, scan = header.index(b"\xff\xdb") + 5, header.index(b"\xff\xda")
    # Codes of one bit less than there are: 0: 8 bits of DC; 10: ends; 110: a run of 0, 10 bits; of DC again.
    dc = b"\xff\xc4\x00\x14\x00" + bytes([1] + [0] * 15) + b"\x08"
    ac = b"\xff\xc4\x00\x15\x10" + bytes([0, 2] + [0] * 14) + b"\x00\x0a"
    bits = "0" + "10000000" + "01" + "1000000000" + "00"
    coded = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    data = bytearray(header[: header.index(b"\xff\xc4")] + dc + ac + header[scan : scan + 10] + coded + b"\xff\xd9")
    data[table : table + 64] = bytes([64] + [128] * 63)
    assert simplejpeg.decode_jpeg(bytes(data), "GRAY").shape == (8, 8, 1)
    assert ours(bytes(data)) is None


@pytest.mark.parametrize(("side", "is_known"), [(65500, True), (65501, False)])
def test_no_side_is_longer_than_libjpeg_allows(side: int, is_known: bool) -> None:
    data = jpeg(Image.new("L", (4, 1))).replace(
        b"\xff\xc0\x00\x0b\x08\x00\x01\x00\x04", b"\xff\xc0\x00\x0b\x08\x00\x01" + side.to_bytes(2, "big")
    )
    assert (read_header(data) is not None) == is_known


@pytest.mark.parametrize("buffer", [np.zeros(10, np.uint8), np.zeros(20000, np.uint8)[::2], np.zeros(20000, np.int8)])
def test_memory_that_does_not_fit_is_not_written(buffer: NDArray[np.uint8]) -> None:
    data = jpeg(picture(50, 60, 2, "waves"))
    header = read_header(data)
    assert header is not None
    found = decode_baseline(data, header, 1, buffer)
    np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(data, "RGB"))
    assert not buffer.any()


def test_codes_that_are_none_are_left_to_others() -> None:
    place = WHOLE.index(b"\xff\xc4") + 5
    for first in (3, 255):  # Three codes of one bit; more symbols than there are.
        data = WHOLE[:place] + bytes([first]) + WHOLE[place + 1 :]
        header = read_header(data)
        assert header is None or not header.components or decode_baseline(data, header) is None


def outcome(data: bytes, ratio: int) -> tuple[bytes, Any]:
    try:
        pixels, sides = decode_image(data, lambda height, width: ratio)
    except ImageError as error:
        return b"", str(error)
    return pixels.tobytes(), (pixels.shape, sides)


FILES = [
    jpeg(picture(33, 47, 4, "waves"), quality=85),
    jpeg(picture(40, 24, 5, "noise"), subsampling="4:2:2", optimize=True),
    jpeg(picture(24, 40, 6, "waves").convert("L"), quality=60),
    WHOLE,
]


def damage(draw: st.DrawFn, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(2, len(damaged) - 1))
        value = draw(st.one_of(st.sampled_from([0x00, 0xFF, 0xD0, 0xD9]), st.integers(0, 255)))
        how = draw(st.sampled_from(["change", "change", "put in", "take out"]))
        damaged[place : place + (how != "put in")] = b"" if how == "take out" else bytes([value])
    return bytes(damaged)


def check_damaged(data: st.DataObject) -> None:
    file = damage(data.draw, FILES[data.draw(st.integers(0, len(FILES) - 1))])
    with_it = outcome(file, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "is_prepared", lambda: False)
        assert outcome(file, 1) == with_it
    ratio = data.draw(st.sampled_from(RATIOS[1:]))
    sides = with_it[1][1] if with_it[0] else None
    reduced = outcome(file, ratio)
    # What can be read can be read reduced, and what cannot cannot.
    assert bool(reduced[0]) == bool(with_it[0])
    header = read_header(file)
    if sides is not None and header is not None and header.components:
        assert reduced[1][1] == sides
        found, slow = ours(file, ratio), unskipped(file, ratio)
        assert (found is None) == (slow is None)
        if found is not None:
            np.testing.assert_array_equal(found, slow)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_comes_to_the_same_with_and_without_our_code(data: st.DataObject) -> None:
    check_damaged(data)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=50_000, deadline=None)
def test_damaged_files_come_to_the_same_with_and_without_our_code(data: st.DataObject) -> None:
    check_damaged(data)


def fenced(count: int, dtype: type) -> NDArray[np.generic]:
    """Gives an array whose end is the end of its pages; what comes after may neither be read nor written."""
    size = count * np.dtype(dtype).itemsize
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.mprotect(ctypes.c_void_p(whole.ctypes.data + pages), ctypes.c_size_t(mmap.PAGESIZE), 0)
    # Kept for good: unmapping is not worth the trouble.
    FENCED.append(memory)
    return whole[pages - size : pages].view(dtype)


FENCED: list[mmap.mmap] = []


@pytest.mark.skipif(os.name != "posix", reason="pages are protected by mprotect")
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_nothing_beyond_the_memory_is_touched_whatever_is_in_the_scan(data: st.DataObject) -> None:
    """A read or write past the end of any buffer ends the process here."""
    number = data.draw(st.integers(-len(FILES), len(FILES) - 1))
    made = FILES[number] if number >= 0 else random_jpeg(random.Random(data.draw(st.integers(0, 2**32))))
    file = damage(data.draw, made) if number >= 0 or data.draw(st.booleans()) else made
    header = read_header(file)
    if header is None or not header.components or header.width * header.height > 2**16:
        return
    source = fenced(len(file), np.uint8)

    def take(name: str, count: int, dtype: type) -> tuple[NDArray[np.generic], int]:
        array = fenced(count, dtype)
        return array, array.ctypes.data

    source[:] = np.frombuffer(file, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg_decoder._scratch, "take", take)
        count = header.height * header.width * 3
        ratio = data.draw(st.sampled_from(RATIOS))
        decode_baseline(memoryview(source), header, ratio, fenced(count, np.uint8))  # type: ignore[arg-type]
