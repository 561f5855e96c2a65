"""Pictures of single photos, read and decoded as the pipeline does.

Shapes: H, W height and width · C 3 colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from numpy.typing import NDArray

from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.decode.pictures.views import VIDEO_FRAMES
from pipeline.read.reader import IsolatedReader, ReaderSettings
from pipeline.sources import archives

SIDE_PX = 224
_JPEG_QUALITY = 72


def thumbnails(uris: Sequence[str]) -> dict[bytes, bytes | str]:
    """Return by photo id the centre square of each photo as a JPEG of some 10 kB, or the reason why there is none."""
    found = pictures(uris, DecodeTarget(SIDE_PX, SIDE_PX))
    return {photo_id: picture if isinstance(picture, str) else _jpeg(picture) for photo_id, picture in found.items()}


def pictures(uris: Sequence[str], target: DecodeTarget) -> dict[bytes, NDArray[np.uint8] | str]:
    """Return by photo id each photo's pixels_HWC as `target` wants them, or the reason why there are none.

    Photos inside archives cost one listing of each archive.
    """
    listings: dict[str, archives.Contents] = {}
    listed: list[dict[str, Any]] = []
    found: dict[bytes, NDArray[np.uint8] | str] = {}
    for uri in uris:
        try:
            listed.append(_listed(uri, listings))
        except (OSError, ValueError) as error:  # of the archive that it seems to lie in
            found[schema.photo_id(uri)] = str(error)
    reader = IsolatedReader(ReaderSettings(replace(target, video_frames=VIDEO_FRAMES)))  # videos have rows if asked for
    try:
        read = reader(pa.Table.from_pylist(listed, schema=schema.MANIFEST)).to_pylist()
    finally:
        reader.close()
    for row in read:
        pixels = row[schema.PIXELS_HWC]
        found[row[schema.PHOTO_ID]] = (
            row[schema.ERROR_MESSAGE] if pixels is None else np.frombuffer(pixels, np.uint8).reshape(target.shape_HWC)
        )
    return found


def _listed(uri: str, listings: dict[str, archives.Contents]) -> dict[str, Any]:
    """Return the row of a manifest by which the Reader finds a photo; `listings` keeps what archives hold.

    Raises OSError or ValueError for a photo of an archive that can't be read, or is damaged before it.
    """
    row: dict[str, Any] = dict.fromkeys(schema.MANIFEST.names)
    row |= {schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri}
    for container_uri, member in _halves(uri):
        if container_uri not in listings:
            if not storage.exists(container_uri):
                continue
            listings[container_uri] = archives.look_into(storage.head(container_uri))
        contents = listings[container_uri]
        for place in contents.members.filter(pc.equal(contents.members.column(archives.MEMBER), member)).to_pylist():
            del place[archives.MEMBER]
            row |= {**place, schema.CONTAINER_URI: container_uri}
            return row
        if contents.problems:
            raise ValueError(f"{container_uri}: {contents.problems[0]}")
    return row


def _halves(uri: str) -> Iterator[tuple[str, str]]:
    """Yield each way in which `uri` may be a member of an archive, `container#member`: either may have a # too."""
    at = uri.find("#")
    while at >= 0:
        if uri[:at].lower().endswith(archives.ENDINGS):
            yield uri[:at], uri[at + 1 :]
        at = uri.find("#", at + 1)


def _jpeg(pixels_HWC: NDArray[np.uint8]) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")
    return encoded
