from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.images import decode_as_annotated, decode_image, is_upright, key_of, photo_suffix
from distill.errors import DataError

QUARTER_TURN = 6  # EXIF: the stored rows are the columns of the upright photo


def turned(hw: tuple[int, int], orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (hw[1], hw[0]), (9, 9, 9)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def coded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", None)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_and_modes_become_rgb(kind: str, suffix: str | None, mode: str) -> None:
    data = coded(Image.new(mode, (40, 30)), kind)
    image = decode_image(data, "here")
    assert image.shape == (30, 40, 3) and image.dtype == np.uint8
    assert photo_suffix(data) == suffix


def test_16_bit_greys_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    image = decode_image(coded(Image.fromarray(ramp), "PNG"), "here")
    assert np.array_equal(image[0, :, 0], np.arange(256))


def test_exif_orientation_is_applied() -> None:
    data = turned((30, 40), QUARTER_TURN)
    assert decode_image(data, "here").shape == (40, 30, 3)
    assert not is_upright(data)
    assert is_upright(turned((30, 40), 1))


def test_the_annotated_size_tells_the_orientation() -> None:
    data = turned((30, 40), QUARTER_TURN)
    assert decode_as_annotated(data, (40, 30), "here").shape == (40, 30, 3)
    assert decode_as_annotated(data, (30, 40), "here").shape == (30, 40, 3)
    with pytest.raises(DataError, match="here.*40 x 30.*31 x 41"):
        decode_as_annotated(data, (31, 41), "here")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_cut_photos_are_named(jpeg, share: float) -> None:
    data = jpeg()
    with pytest.raises(DataError, match="here"):
        decode_image(data[: int(len(data) * share)], "here")


def test_random_damage_is_either_a_photo_or_a_data_error(jpeg) -> None:
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = coded(Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)), kind)
        for _ in range(100):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(0, 256)
            try:
                decode_image(bytes(data), "here")
            except DataError as error:
                assert "here" in str(error)


def test_keys_have_no_dots_and_no_slashes() -> None:
    assert key_of(Path("a.b/c.d/IMG.2020.jpg")) == "a_b_c_d_IMG_2020"
