"""What stands beside photos, as other programs write it."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any
from xml.sax.saxutils import escape

TAKEN = dt.datetime(2018, 6, 26, 8, tzinfo=dt.UTC)


def takeout_json(
    title: str,
    lat_deg: Any = 0.0,
    lon_deg: Any = 0.0,
    taken_at_utc: dt.datetime = TAKEN,
    exif: tuple[Any, Any] = (0.0, 0.0),
    description: str = "",
) -> bytes:
    """Return what Google Takeout writes beside a photo."""
    timestamp = str(round(taken_at_utc.timestamp()))
    spans = {"altitude": 0.0, "latitudeSpan": 0.0, "longitudeSpan": 0.0}
    found = {
        "title": title,
        "description": description,
        "imageViews": "3",
        "creationTime": {"timestamp": str(int(timestamp) + 9), "formatted": "x"},
        "photoTakenTime": {"timestamp": timestamp, "formatted": "x"},
        "geoData": {"latitude": lat_deg, "longitude": lon_deg, **spans},
        "geoDataExif": {"latitude": exif[0], "longitude": exif[1], **spans},
        "url": "https://example.org/p",
    }
    return json.dumps(found, indent=2).encode()


def xmp_sidecar(lat_deg: float | None = None, lon_deg: float | None = None, caption: str = "") -> bytes:
    """Return an XMP sidecar with a rating, and with a position and a caption where given."""
    position = ""
    if lat_deg is not None and lon_deg is not None:
        position = f'exif:GPSLatitude="{_angle(lat_deg, "NS")}" exif:GPSLongitude="{_angle(lon_deg, "EW")}"'
    words = (
        f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{escape(caption)}</rdf:li></rdf:Alt></dc:description>'
    )
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmp:Rating="4" {position}>{words}</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""".encode()


def _angle(angle_deg: float, letters: str) -> str:
    return f"{int(abs(angle_deg))},{abs(angle_deg) % 1 * 60:.4f}{letters[angle_deg < 0]}"
