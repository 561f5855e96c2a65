"""Which columns of a table say what: tools write their names in any case, with blanks, and choose their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import schema

log = logging.getLogger(__name__)

_URI_NAMES = frozenset(
    [
        *("url", "path", "file", "filepath", "filename", "fullpath", "fullname", "fullfilename", "sourcefile"),
        *("absolutepath", "relativepath", "location", "s3uri", "s3url", "s3path", "gcsuri", "gcspath", "gsuri"),
        *("gsutiluri", "azureuri", "objecturi", "objecturl", "fileuri", "fileurl", "image", "imagepath", "imageuri"),
        *("imageurl", "imagefile", "imagefilename", "imagefilepath", "img", "imgpath", "imgurl", "photo", "photopath"),
        *("photouri", "photourl", "photofile", "picture", "picturepath", "pictureurl"),
    ]
)
"""As pandas scripts, exiftool (SourceFile), PowerShell (FullName), Hugging Face (file_name), img2dataset and object
tables call it; the documented name `uri` goes before all of them."""
_KEY_NAMES, _BUCKET_NAMES = frozenset(["key", "objectkey", "s3key"]), frozenset(["bucket", "bucketname", "s3bucket"])
BUCKET = "bucket"
"""What readers call the column that stands before a key, beside the names of the manifest."""


class UnreadableListError(ValueError):
    """A file that can't be read as the list that it should be; the message says why and what to write instead."""


def plain(name: str) -> str:
    """Return a column's name as all tools would have it: IsLatest, is_latest and " Is Latest " are one."""
    return name.strip(" \t\r\n\ufeff").replace("_", "").replace(" ", "").replace("-", "").lower()


_OWN = {plain(name): name for name in (schema.ETAG, schema.SIZE_BYTES, schema.MODIFIED_AT)}


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read: `names` are its own, by what they mean (`schema.URI`, …, `BUCKET`)."""

    names: dict[str, str]

    @property
    def photo(self) -> str:
        """Return the name of the column that names the photos."""
        return self.names[schema.URI]


def is_uri_name(name: str) -> bool:
    """Whether a column of this name can name photos."""
    return plain(name) == schema.URI or plain(name) in _URI_NAMES


def names_photos(names: Sequence[str]) -> bool:
    """Whether columns of these names can name photos."""
    plains = {plain(name) for name in names}
    return any(map(is_uri_name, names)) or bool(plains & _KEY_NAMES and plains & _BUCKET_NAMES)


def choose(names: Sequence[str], source: str) -> Columns:
    """Return which columns to read; UnreadableListError where none names the photos, or more than one may.

    Columns that are not read are named in the log.
    """
    own = [name for name in names if plain(name) == schema.URI]
    keys = [name for name in names if plain(name) in _KEY_NAMES]
    buckets = [name for name in names if plain(name) in _BUCKET_NAMES]
    candidates = own or [name for name in names if is_uri_name(name)]
    found: dict[str, str] = {}
    if not candidates and keys and buckets:
        _check_single(keys, source)
        _check_single(buckets, source)
        found |= {schema.URI: keys[0], BUCKET: buckets[0]}
    elif candidates:
        _check_single(candidates, source)
        found[schema.URI] = candidates[0]
    else:
        raise UnreadableListError(_none(names, source))
    for each, meaning in _OWN.items():
        if same := [name for name in names if plain(name) == each]:
            _check_single(same, source)
            found[meaning] = same[0]
    if unread := [name for name in names if name not in found.values()]:
        log.info(
            "%s: column %s names the photos; not read: %s", source, found[schema.URI], ", ".join(unread[:20])[:1000]
        )
    return Columns(found)


def _check_single(names: Sequence[str], source: str) -> None:
    if len(names) == 1:
        return
    if len({plain(name) for name in names}) == 1:
        which = names[0] if len(set(names)) == 1 else " and ".join(dict.fromkeys(names))
        raise UnreadableListError(f"{source} has {len(names)} columns named {which}: leave one")
    raise UnreadableListError(
        f"{source} has {len(names)} columns that may name the photos, {', '.join(names)}: rename the right one to uri"
    )


def _none(names: Sequence[str], source: str) -> str:
    reason = f"{source} has no column named uri or path or url; its columns are: {', '.join(names[:20])}"[:1900]
    if any(plain(name) in _KEY_NAMES for name in names):
        return f"{reason}. For a key add a column bucket, or write s3://BUCKET/KEY into a column uri"
    if any("/" in name or "\\" in name for name in names):
        return f"{reason}. It seems to have no header: write the names of its columns, uri first of all, as first line"
    return reason
