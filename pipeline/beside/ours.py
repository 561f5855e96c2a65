"""Our own part of an XMP sidecar, as exports write it: to be known again, and never to be taken for an owner's word."""

from __future__ import annotations

import hashlib
import re

NAMESPACE = "urn:graticule:prediction#"
METHOD = "(Graticule)"
"""Is in `exif:GPSProcessingMethod` of a predicted position, whoever has written the sidecar anew since."""
_SEAL = re.compile(rb'(graticule:Seal=")([0-9a-f]*)(")')
_BEGIN, _END = b"<rdf:Description", b"</rdf:Description>"


def sealed(unsealed: bytes) -> bytes:
    """Return a part that has `graticule:Seal=""` with its seal, the hash of all of it."""
    return _SEAL.sub(rb"\g<1>" + _seal(unsealed) + rb"\g<3>", unsealed, count=1)


def is_sealed(part: bytes) -> bool:
    """Whether one of our parts is byte for byte as we wrote it."""
    found = _SEAL.search(part)
    return found is not None and found[2] == _seal(_SEAL.sub(rb"\g<1>\g<3>", part, count=1))


def without_ours(sidecar: bytes) -> bytes:
    """Return a sidecar without the parts that are as we wrote them."""
    mark, start, kept = NAMESPACE.encode(), 0, []
    while (at := sidecar.find(mark, start)) >= 0:
        begin, end = sidecar.rfind(_BEGIN, start, at), sidecar.find(_END, at)
        if begin < 0 or end < 0:
            break
        end += len(_END)
        kept.append(sidecar[start : begin if is_sealed(sidecar[begin:end]) else end])
        start = end
    return b"".join([*kept, sidecar[start:]])


def is_predicted(rest: bytes) -> bool:
    """Whether the position in what `without_ours` returned is our prediction, which another program wrote anew.

    Editors keep our properties among their own. Who sets another position takes away how it was found.
    """
    return METHOD.encode() in rest


def _seal(unsealed: bytes) -> bytes:
    return hashlib.blake2b(unsealed, digest_size=8).hexdigest().encode()
