"""Every format that Pillow reads, damaged at random: an image file is read, or it is an error that names it."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from madkit.core.errors import DataError
from madkit.extract.broken_files import broken_files
from madkit.teachers.preprocess import Preprocessing

FORMATS = ["PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "DDS", "AVIF"]
SIZE = (32, 32)


def written(kind: str) -> bytes:
    ramp = np.add.outer(np.arange(48) * 5, np.arange(64) * 3)[..., None] * np.array([1, 2, 3]) % 256
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def damaged(whole: bytes, dice: random.Random) -> bytes:
    """Cut off somewhere, or with some bytes changed, in the header above all; or both."""
    data = bytearray(whole[: dice.randint(0, len(whole))] if dice.random() < 0.3 else whole)
    for _ in range(dice.randint(1, 6) if data else 0):
        data[dice.randrange(min(len(data), dice.choice([40, 200, 1_000_000])))] = dice.randrange(256)
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it can read all the same
@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_image_is_an_error_that_names_the_file(kind: str, decoder: str, tmp_path: Path) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow does not read AVIF")
    preprocessing = Preprocessing(size=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3, decoder=decoder)
    dice, whole, told = random.Random(kind), written(kind), []
    for number in range(60):
        path = tmp_path / f"{number}"
        path.write_bytes(damaged(whole, dice))
        try:
            assert preprocessing.look(path)[0].shape == (3, *SIZE)
        except DataError as error:
            told.append(str(path) in error.message)
        broken_files([path])  # raises nothing
    assert told
    assert all(told)
