"""Any text as XML 1.0 may hold it."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENTITIES = {'"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}


def xml_text(text: str) -> str:
    r"""Return `text` for between tags or quotes; characters that no XML may hold, even escaped, become e.g. `\x00`."""
    allowed = _NOT_IN_XML.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)
    return escape(allowed, _ENTITIES)
