"""How much of a picture a codec could decode before its file ended, counted in rows of pixels that it really wrote.

The codec is given memory that holds one row of noise over and over. What it has not written still holds it: no picture
has such rows. So nothing is estimated from numbers of bytes, and a picture's black border is no missing part.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

LEAST_SHARE = 0.9
"""Of a damaged picture so much has to be there for it to be looked at."""
TRUNCATED = "truncated"
"""What `decode_warning` says of such a picture."""
_BAND_BYTES = 8 << 20
_BLOCK_BYTES = 16
"""So many bytes as in the noise are no picture's; a tile that is missing is wider."""
_GREY = 128


def load_part(image: ImageFile.ImageFile) -> float:
    """Load as much as there is of a picture that was opened, and make the rest grey; return the share of whole rows.

    A missing row of an interlaced picture becomes the one above it. Raises what the codec raises for anything but an
    early end, and OSError where too few bytes make a row to tell it from noise.
    """
    row = _noise(image.mode, image.width)
    noise = Image.new(image.mode, image.size)
    band_px = max(1, min(image.height, _BAND_BYTES // len(row)))
    band = Image.frombytes(image.mode, (image.width, band_px), row * band_px)
    for top in range(0, image.height, band_px):
        noise.paste(band, (0, top))
    image.im = noise.im
    try:
        image.load()
    except (OSError, EOFError):
        image.tile = []  # what is there is all that will be
    is_missing = _is_missing_H(image, row, band_px)
    _fill(image, is_missing)
    return 1.0 - float(is_missing.mean())


def _noise(mode: str, width_px: int) -> bytes:
    length_bytes = len(Image.new(mode, (width_px, 1)).tobytes())
    if length_bytes < _BLOCK_BYTES:
        raise OSError("truncated: too narrow to tell how much of it is there")
    return np.random.default_rng(0).integers(0, 256, length_bytes, np.uint8).tobytes()


def _is_missing_H(image: Image.Image, row: bytes, band_px: int) -> np.ndarray:
    """Return for each row whether a block of it still holds the noise."""
    blocks = len(row) // _BLOCK_BYTES
    used_bytes = blocks * _BLOCK_BYTES
    noise_KB = np.frombuffer(row, np.uint8)[:used_bytes].reshape(blocks, _BLOCK_BYTES)
    found = []
    for top in range(0, image.height, band_px):
        band = image.crop((0, top, image.width, min(top + band_px, image.height))).tobytes()
        band_HB = np.frombuffer(band, np.uint8).reshape(-1, len(row))[:, :used_bytes]
        found.append((band_HB.reshape(-1, blocks, _BLOCK_BYTES) == noise_KB).all(axis=2).any(axis=1))
    return np.concatenate(found)


def _fill(image: Image.Image, is_missing_H: np.ndarray) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_missing_H, [False]]).astype(np.int8)))
    for top, bottom in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if bottom - top <= 4 and top > 0 and bottom < image.height:
            image.paste(image.crop((0, top - 1, image.width, top)).resize((image.width, bottom - top)), (0, top))
        else:
            bands = len(image.getbands())
            image.paste(_GREY if bands == 1 else (_GREY,) * bands, (0, top, image.width, bottom))
