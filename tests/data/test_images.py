from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from distill.data import images
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillow_s(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (7, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode_image(buffer.getvalue(), "here"), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_large_photo_is_converted_in_bands_to_the_same_pixels(mode: str, monkeypatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 30, 3), dtype=np.uint8)
    greys = Image.fromarray(noise[..., 0].astype(np.uint16) * 256)
    image = greys if mode == "I;16" else Image.fromarray(noise).convert(mode)
    data = coded(image, "TIFF")
    expected = decode_image(data, "here")
    monkeypatch.setattr(images, "BAND_PIXELS", 100)
    assert np.array_equal(decode_image(data, "here"), expected)


def test_the_memory_of_a_large_photo_is_bounded(tmp_path: Path) -> None:
    """A PNG of 20 KB and one bit a pixel holds 13,000 x 13,000 pixels: 169 MB for Pillow, 507 MB as RGB."""
    Image.new("1", (13_000, 13_000)).save(tmp_path / "large.png")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from distill.data.images import decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "shape = decode_image(Path(sys.argv[1]).read_bytes(), 'here').shape\n"
        "print(shape, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.png")], capture_output=True, text=True, check=True
    )
    shape, _, megabytes = done.stdout.rpartition(" ")
    assert shape == "(13000, 13000, 3)" and int(megabytes) < 800


def test_a_photo_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(buffer, "PNG")
    with pytest.raises(DataError, match="here: more than 178,956,970 pixels are too many for an image; reduce it"):
        decode_image(buffer.getvalue(), "here")


def test_formats_that_hold_no_photos_are_not_tried() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with Image.open(io.BytesIO(postscript)) as image:
        assert image.format == "EPS"  # Pillow would start ghostscript
    with pytest.raises(DataError, match="here: cannot be decoded"):
        decode_image(postscript, "here")


def test_keys_have_no_dots_and_no_slashes() -> None:
    assert key_of(Path("a.b/c.d/IMG.2020.jpg")) == "a_b_c_d_IMG_2020"
