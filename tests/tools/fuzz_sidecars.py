"""The fuzzer's target `sidecars`: Google Takeout's JSON and XMP sidecars, ours among them."""

from __future__ import annotations

import pyarrow as pa

from tests.support.sidecar_samples import takeout_json, xmp_sidecar
from tests.tools.fuzz_metadata import metadata_seeds


def check_sidecars(data: bytes) -> str:
    """A sidecar is read or refused as corrupt; what it says is in range, printable, and fits the output's columns."""
    from pipeline.beside.sidecar import read_sidecar
    from pipeline.decode.recorded import MAX_CAPTION_CHARS
    from pipeline.schema import PhotoError

    told: set[str] = set()
    for kind in ("xmp", "takeout"):
        try:
            sidecar = read_sidecar(data, kind)  # type: ignore[arg-type]
        except PhotoError:
            continue
        found = sidecar.recorded
        told.add(f"{kind} of another" if sidecar.is_another else kind)
        assert (found.lat_deg is None) == (found.lon_deg is None) == (found.by is None)
        if found.lat_deg is not None and found.lon_deg is not None:
            assert abs(found.lat_deg) <= 90
            assert abs(found.lon_deg) <= 180
            told.add("position")
        assert (found.taken_at_utc is None) == (found.utc_by is None)
        pa.array([found.taken_at_utc], pa.timestamp("us", "UTC"))
        caption = found.caption
        assert caption is None or (caption.isprintable() and 0 < len(caption) <= MAX_CAPTION_CHARS)
        pa.array([caption], pa.string()).validate(full=True)
    return " ".join(sorted(told)) or "refused"


def sidecar_seeds() -> list[tuple[str, bytes]]:
    """Return sidecars, each with its kind."""
    both = [
        *(("takeout", takeout_json("a.jpg", *place, description="A &amp; é")) for place in ((41.4, 2.2), (0.0, 0.0))),
        ("xmp", xmp_sidecar(48.5, 2.5, "A church")),
        ("xmp", xmp_sidecar(48.5, 2.5, "A church").decode().encode("utf-16")),
    ]
    prediction = '<rdf:Description xmlns:graticule="urn:graticule:prediction#" graticule:Seal="0">'
    part = f"{prediction}(Graticule)</rdf:Description></rdf:RDF>".encode()
    return [*both, ("xmp", xmp_sidecar(48.5, 2.5).replace(b"</rdf:RDF>", part))]


SEEDS_OF_METADATA = {"metadata": metadata_seeds, "sidecars": sidecar_seeds}
"""What the targets start from that read no photos."""
