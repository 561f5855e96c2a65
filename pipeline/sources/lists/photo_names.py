"""Photos' names as lists write them, turned into the one form that is stored."""

from __future__ import annotations

import re
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.sources import roots
from pipeline.sources.lists.reading import Reading
from pipeline.sources.lists.rows import Rows
from pipeline.storage import web
from pipeline.storage.local_files import OtherHostError

_SEGMENT = r"(?:[^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+)"
_FIRST_SEGMENT = r"(?:[^/.:\\\s][^/:\\]*|\.[^/.:\\][^/:\\]*|\.\.[^/:\\]+)"
_PLAIN_ABSOLUTE = rf"\A(?:(?:s3|gs|az)://[^/]|(?:/{_SEGMENT})+\z)"
_PLAIN_RELATIVE = rf"\A{_FIRST_SEGMENT}(?:/{_SEGMENT})*\z"
_HAS_PLACE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]+://|file:/", re.IGNORECASE)
"""Names that are canonical as they stand, or below a canonical folder; `storage.canonical` judges all others."""
_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_SLASH_IS_MISSING = re.compile(r"(s3[an]?|gs|az|abfss?|wasbs?|hdfs|dbfs|https?):/(?!/)", re.IGNORECASE)
"""As Python's pathlib and os.path.normpath leave a URI."""


def canonical(uris: pa.Array, is_named: pa.Array, rows: Rows, reading: Reading) -> pa.Array:
    """Return the URIs in the form that is stored; relative ones lie in the folder. Most columns are so, all alike.

    Raises ValueError for a file of another machine: nothing here could read it, nor say whether it is there.
    """
    folder = reading.folder
    is_plain = pc.match_substring_regex(uris, _PLAIN_ABSOLUTE)
    noted: set[int] = set()
    if is_plain.true_count == len(uris):
        found = uris
    elif not folder.lower().startswith("file:") and pc.all(pc.match_substring_regex(uris, _PLAIN_RELATIVE)).as_py():
        found = pc.binary_join_element_wise(folder, uris, "/")
    else:
        values = uris.to_pylist()
        for index in map(int, np.flatnonzero(~is_plain.to_numpy(zero_copy_only=False))):
            try:
                values[index] = _canonical_uri(values[index], rows, reading)
            except OtherHostError as error:
                raise ValueError(f"{reading.source}, {reading.where(rows.number_of(index))}: {error}") from error
            except ValueError as error:
                noted.add(index)
                reading.note_unreadable(index, rows, str(error))
        found = pa.array(values, pa.string())
    _check_roots(found, is_named, noted, rows, reading)
    return found


def _canonical_uri(uri: str, rows: Rows, reading: Reading) -> str:
    """Return one URI in the form that is stored; ValueError where nobody here reads such a one."""
    if _HAS_PLACE.match(bare := uri.lstrip(" \t")):  # as in "1, /a.jpg": no folder is called " "
        uri = bare
    web.check_allowed(uri, reading.search.allow_http)
    if web.is_web(uri):
        return uri
    if not _HAS_PLACE.match(uri):
        if _OF_WINDOWS.match(uri):
            raise ValueError(
                f"{uri} is a path of Windows: write a path that this machine knows, or one beside the list"
            )
        if match := _SLASH_IS_MISSING.match(uri):
            raise ValueError(f"{uri} lacks a slash: write {match[1]}://")
        if rows.is_from_windows and "\\" in uri and "/" not in uri:
            reading.windows_names += 1
            uri = uri.replace("\\", "/")
        while uri.startswith("./") and len(uri) > 2:  # as `find .` begins each name
            uri = uri[2:]
        is_quoted = reading.folder.lower().startswith("file:")
        uri = storage.join(reading.folder, quote(uri) if is_quoted else uri)
    return storage.canonical(uri)


def _check_roots(uris: pa.Array, is_named: pa.Array, noted: set[int], rows: Rows, reading: Reading) -> None:
    """Note local photos that lie where the manifest may name none: their reader refuses them."""
    own_roots = reading.search.roots
    if own_roots is None:
        return
    is_seen = pc.match_substring_regex(uris, r"(?i)\A[a-z][a-z0-9+.-]*://")
    is_file = pc.starts_with(uris, "file://")
    for root in own_roots:
        is_seen = pc.or_(is_seen, pc.starts_with(uris, root) if root.endswith("/") else pc.equal(uris, root))
    is_outside = pc.and_(is_named, pc.or_(pc.invert(is_seen), is_file))
    for index in map(int, np.flatnonzero(is_outside.to_numpy(zero_copy_only=False))):
        uri = uris[index].as_py()
        if index not in noted and not roots.is_allowed(uri, own_roots):
            reading.note_unreadable(index, rows, roots.refusal(uri))
