"""The two decoders: the same pixels from the same file, whatever is in it, and the same refusals."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from madkit.core.errors import DataError, UsageProblem
from madkit.extract.decode import choose_decoder, make_decoder
from madkit.teachers.preprocess import Preprocessing
from madkit.teachers.torchvision_decode import decode_like_pillow

torch.set_num_threads(1)
PLAIN = Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PHOTOS = sorted((Path(__file__).parents[3] / "shared" / "data" / "regions" / "images").glob("*.jpg"))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Colours that run into each other, with noise: more detail than most photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8))


def both(path: Path, preprocessing: Preprocessing = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels by torchvision and by Pillow."""
    found = [make_decoder(name, preprocessing)[0].load(path) for name in ("torchvision", "pillow")]
    for pixels in found:
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, *preprocessing.size)
        assert pixels.is_contiguous()
    return found[0].numpy().astype(int), found[1].numpy().astype(int)


def assert_close(path: Path, preprocessing: Preprocessing = PLAIN) -> None:
    ours, pillows = both(path, preprocessing)
    assert np.abs(ours - pillows).mean() < 0.1  # of 255 levels; a level at a few places
    assert np.abs(ours - pillows).max() <= 2


@pytest.mark.skipif(not PHOTOS, reason="the shared sample files are not here")
def test_photographs() -> None:
    for path in PHOTOS[:12]:
        for interpolation in ("bicubic", "bilinear"):
            assert_close(path, replace(PLAIN, interpolation=interpolation))
        found = decode_like_pillow(path.read_bytes())
        assert found is not None
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), np.array(Image.open(path).convert("RGB")))


def exif_turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    image.save(path, "JPEG", exif=exif)


def sixteen_bits(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path, "PNG")


FORMS: dict[str, Callable[[Image.Image, Path], None]] = {
    "jpeg 4:2:0": lambda image, path: image.save(path, "JPEG", quality=80, subsampling=2),
    "jpeg 4:4:4": lambda image, path: image.save(path, "JPEG", quality=95, subsampling=0),
    "jpeg progressive": lambda image, path: image.save(path, "JPEG", progressive=True),
    "jpeg grey": lambda image, path: image.convert("L").save(path, "JPEG"),
    "jpeg cmyk": lambda image, path: image.convert("CMYK").save(path, "JPEG"),
    "jpeg turned": exif_turned,
    "png": lambda image, path: image.save(path, "PNG"),
    "png grey": lambda image, path: image.convert("L").save(path, "PNG"),
    "png palette": lambda image, path: image.quantize(40).save(path, "PNG"),
    "png transparent": lambda image, path: image.convert("RGBA").save(path, "PNG"),
    "png grey transparent": lambda image, path: image.convert("LA").save(path, "PNG"),
    "png bits": lambda image, path: image.convert("1").save(path, "PNG"),
    "png colour key": lambda image, path: image.save(path, "PNG", transparency=(1, 2, 3)),
    "png 16 bits": sixteen_bits,
    "webp": lambda image, path: image.save(path, "WEBP"),
    "gif": lambda image, path: image.save(path, "GIF"),
    "bmp": lambda image, path: image.save(path, "BMP"),
    "tiff": lambda image, path: image.save(path, "TIFF"),
}
BY_TORCHVISION = {"jpeg 4:2:0", "jpeg 4:4:4", "jpeg progressive", "jpeg grey", "jpeg turned"}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file(form: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    FORMS[form](picture(301, 254, 3), path)
    assert_close(path)
    decoded = decode_like_pillow(path.read_bytes())
    assert (decoded is not None) == (form in BY_TORCHVISION)
    if decoded is not None:
        expected = np.array(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), expected)


@settings(max_examples=40)
@given(
    st.integers(16, 90),
    st.integers(16, 90),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(["shortest", "squash"]),
    st.sampled_from([None, 33, 40]),
    st.sampled_from([(32, 32), (32, 24)]),
    st.sampled_from(["round", "floor"]),
)
def test_every_size_and_crop(
    width: int,
    height: int,
    interpolation: str,
    mode: str,
    edge: int | None,
    size: tuple[int, int],
    crop: str,
) -> None:
    """Sizes are those of Pillow's path exactly; pixels are, up to a level at some places."""
    preprocessing = Preprocessing(size, (0,) * 3, (1,) * 3, interpolation, mode, "pillow", edge, crop)
    image = picture(width, height, width)
    pillows = np.array(preprocessing.fit(image)).astype(int)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    ours = preprocessing.fit_pixels(pixels).permute(1, 2, 0).numpy().astype(int)
    assert ours.shape == pillows.shape
    # Most where an edge doubles, which puts every other pixel between two levels; another crop differs by ten.
    assert np.abs(ours - pillows).mean() < 1
    assert np.abs(ours - pillows).max() <= 8


def test_members_of_zips(tmp_path: Path) -> None:
    file = io.BytesIO()
    picture(70, 50).save(file, "JPEG")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a/b.jpg", file.getvalue())
    assert_close(tmp_path / "images.zip" / "a" / "b.jpg", replace(PLAIN, size=(32, 32)))
    for name in ("torchvision", "pillow"):
        with pytest.raises(DataError, match=r"c\.jpg does not exist"):
            make_decoder(name, PLAIN)[0].load(tmp_path / "images.zip" / "a" / "c.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_files_are_refused_by_both_alike(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    file = io.BytesIO()
    picture(120, 90, 5).save(file, kind)
    data = file.getvalue()
    chance = np.random.default_rng(0)
    cuts = [data[:length] for length in (0, 3, 30, len(data) // 3, len(data) // 2, len(data) - 20)]
    flips = []
    for _ in range(12):
        flipped = bytearray(data)
        flipped[int(chance.integers(20, len(data)))] ^= int(chance.integers(1, 256))
        flips.append(bytes(flipped))
    refused = 0
    for broken in (*cuts, *flips, b"no image at all"):
        path.write_bytes(broken)
        said: list[object] = []
        for name in ("torchvision", "pillow"):
            try:
                said.append(make_decoder(name, PLAIN)[0].load(path).numpy().astype(int))
            except DataError as error:
                said.append(error.message)
        if isinstance(said[1], str):
            refused += 1
            assert said[0] == said[1]
            assert str(path) in said[1]
        else:  # a wrong colour somewhere, which neither library can know
            assert not isinstance(said[0], str)
            assert np.abs(said[0] - said[1]).mean() < 0.1
    assert refused >= 7


def test_an_attack_by_size_is_left_to_pillow() -> None:
    file = io.BytesIO()
    picture(40, 30).save(file, "JPEG")
    data = bytearray(file.getvalue())
    assert decode_like_pillow(bytes(data)) is not None
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = b"\xff\xff\xff\xff"  # 65,535 x 65,535
    assert decode_like_pillow(bytes(data)) is None


def test_which_decoder() -> None:
    assert choose_decoder("auto", "mini")[0] == "pillow"  # its caches keep their keys
    assert choose_decoder("auto", "open_clip:ViT-B-32/openai")[0] == "torchvision"
    assert choose_decoder("pillow", "open_clip:ViT-B-32/openai") == ("pillow", "as asked for")
    with pytest.raises(UsageProblem, match="Did you mean 'pillow'"):
        choose_decoder("pilow")
    assert "decoder" not in {name for name in PLAIN.identity() if PLAIN.identity()[name] != "pillow"}
    assert replace(PLAIN, decoder="torchvision").identity()["decoder"] == "torchvision"
