"""What names say: which file is a list of photos, and which folder holds the parts of one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline import schema, storage

_WITHOUT_COLUMNS = ("json", "txt", "lst", "list")
"""Kinds whose endings other files have, too: documents, owners' notes, what Takeout writes beside photos."""
_OTHER_LISTS = re.compile(
    r"\.(?:xls[xmb]?|ods|numbers|ya?ml|m3u8?|feather|arrow|ipc|orc|avro|pkl|pickle)$"
    r"|\.(?:csv|tsv|parquet|jsonl|ndjson)\.[^./]*$|\.(?:txt|json)\.(?:zip|7z|rar|snappy|deflate|lzo)$",
    re.IGNORECASE,
)
_OTHER_TABLES = re.compile(r"\.(?:avro|orc|arrow|feather|metadata\.json)$|/version-hint\.text$", re.IGNORECASE)
"""Parts of tables that can't be read, such as Iceberg's and Hive's."""
_SYSTEMS_OWN = re.compile(r"(?:thumbs\.db|desktop\.ini|.*_\$folder\$|.*\.crc|.*\.csv\.metadata)", re.IGNORECASE)
_BOOKKEEPING = ("json", "crc", "txt", "metadata", "manifest", "compact", "checkpoint", "tmp", "inprogress")
_AS_TOOLS_CALL_PARTS = re.compile(
    r"part-(?:[mr]-)?\d{5}|part\.\d+|data_\d+_\d+_\d+|\d{4,}_part_\d\d|\d{6}_\d+(?:\.|$)|\d+\.part$|.*[-_]0{4}\d{8}\.",
    re.IGNORECASE,
)
"""Spark and Hadoop, Dask, Snowflake, Redshift, Hive, Dask's CSV, BigQuery. What else has an ending is no part."""
_HAS_OTHER_ENDING = re.compile(r"\.(?!(?:gz|bz2|zst|lz4|snappy|deflate|part|\d+)(?:\.|$))", re.IGNORECASE)


def is_list(uri: str) -> bool:
    """Whether a file is a list of photos by its name."""
    return schema.LIST_NAME.search(uri) is not None


def is_table(uri: str) -> bool:
    """Whether a file is a list with named columns by its name, so that it can be nothing else."""
    return kind_of(uri) not in ("", *_WITHOUT_COLUMNS)


def kind_of(uri: str) -> str:
    """Return the ending that says what kind of list a file is, in lower case and without the packing's, or ""."""
    match = schema.LIST_NAME.search(uri)
    return match[1].lower() if match else ""


def is_other_list(uri: str) -> bool:
    """Whether a file is a list of a kind that can't be read, by its name."""
    return _OTHER_LISTS.search(uri) is not None and not is_list(uri)


class _Look:
    """Tells the parts of a table from its bookkeeping and from other files: a `storage.Visitor`."""

    def __init__(self, folder: str) -> None:
        self._prefix, self._is_written_by_a_tool = f"{folder.rstrip('/')}/", is_table(folder)

    def enters(self, folder_uri: str) -> bool:
        """Whether a folder can hold parts or photos: none whose name begins with a dot does."""
        return not folder_uri.rpartition("/")[2].startswith(".")

    def note_unseen(self, uri: str, error: OSError) -> None:
        """Raise the error: of a folder that can't be listed nobody knows what it holds."""
        raise error

    def is_bookkeeping(self, uri: str) -> bool:
        """Whether a file is none of the table, as for all tools: what begins with `_` or `.`, if it is no photo."""
        *folders, name = uri.removeprefix(self._prefix).split("/")
        if any(each.startswith(".") for each in (*folders, name)) or _SYSTEMS_OWN.fullmatch(name):
            return True
        is_set_apart = name.startswith("_") or any(each.startswith("_") for each in folders)
        self._is_written_by_a_tool |= name == "_SUCCESS"
        # Cameras begin photos' names with an underscore, too.
        return is_set_apart and ("." not in name or name.lower().endswith(_BOOKKEEPING) or is_list(name))

    def is_part(self, uri: str) -> bool:
        """Whether a file is a part: by its ending, or where a tool wrote the folder, also without one."""
        name = uri.rpartition("/")[2]
        if is_table(name):
            return True
        if not (self._is_written_by_a_tool or _AS_TOOLS_CALL_PARTS.match(name)):
            return False
        if kind_of(name) in ("json", "txt"):
            return True
        return _AS_TOOLS_CALL_PARTS.match(name) is not None and _HAS_OTHER_ENDING.search(name) is None


def parts_of(folder: str) -> Iterator[storage.Entry]:
    """Yield the parts of the table that a folder or prefix is; none where it is a folder of anything else.

    A folder is a table where it holds parts and, beside bookkeeping, nothing else. Raises
    ValueError where parts and other things lie side by side in a folder that is named as a table, and for tables of
    kinds that can't be read; OSError where it can't be listed.
    """
    if not holds_parts(folder):
        return
    look = _Look(folder)
    for entry in _looked_at(folder, look):
        if not look.is_part(entry.uri):
            raise ValueError(f"{folder} changed while it was read: {entry.uri} is no part of a table. Start again")
        yield entry


def holds_parts(folder: str) -> bool:
    """Whether a folder or prefix is a table, as `parts_of` says."""
    look, first, unread = _Look(folder), "", ""
    for entry in _looked_at(folder, look):
        if _OTHER_TABLES.search(entry.uri):
            unread = unread or entry.uri
        elif look.is_part(entry.uri):
            first = first or entry.uri
        elif first and is_table(folder):
            raise ValueError(
                f"{folder} holds both parts of a table, such as {first}, and other files, such as {entry.uri}:"
                " name the parts, or the photos, alone"
            )
        else:
            return False
    if unread:
        raise ValueError(
            f"{folder} is a table of a kind that can't be read, with files such as {unread}: write it as Parquet or CSV"
        )
    return bool(first)


def _looked_at(folder: str, look: _Look) -> Iterator[storage.Entry]:
    for entry in storage.list_files(folder, look):
        if not look.is_bookkeeping(entry.uri):
            yield entry
