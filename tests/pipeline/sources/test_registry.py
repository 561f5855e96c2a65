"""A new kind of source is one small class that the registry names; each value of `--photos` finds its own kind."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import schema, storage
from pipeline.sources import registry
from pipeline.sources.manifest import read_manifest
from pipeline.sources.search import Search


@dataclass(frozen=True)
class TextList:
    """As CONTRIBUTING says that one writes a source: a text file with a photo's URI on each line."""

    uri: str
    place: str = ""

    @classmethod
    def of(cls, uri: str) -> TextList | None:
        """Return the list, if the file is there."""
        return cls(uri) if uri.endswith(".lst") and storage.exists(uri) else None

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the photos that it names; a line that is empty is a problem."""
        lines = storage.read_bytes(self.uri).decode().splitlines()
        if "" in lines:
            search.note(schema.ProblemKind.ROW, self.uri, f"line {lines.index('') + 1} is empty")
        rows = pa.table({schema.URI: [line for line in lines if line]})
        yield search.take(rows, rows.column(schema.URI))


def test_a_new_kind_of_source_is_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{tmp_path}/a.lst", b"s3://b/1.jpg\n\n/2.jpg\ns3://b/3.png\n")
    monkeypatch.setattr(registry, "SOURCES", (TextList, *registry.SOURCES))
    listing = read_manifest(f"{tmp_path}/a.lst", exclude=["*.png"])
    assert [row for batch in listing for row in batch[schema.URI].to_pylist()] == ["s3://b/1.jpg", "/2.jpg"]
    assert listing.search.excluded == 1
    assert listing.search.problems == [schema.SourceProblem("row", f"{tmp_path}/a.lst", "line 2 is empty")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("photos", "Folder"),
        ("missing", "Folder"),
        ("photos.csv", "Folder"),
        ("m.csv", "Table"),
        ("m.PARQUET", "Table"),
        ("m.jsonl.gz", "Table"),
        ("names.txt", "Table"),
        ("x.tar", "Archive"),
        ("*.tar", "ArchivesBelow"),
        ("photos/2024-*.zip", "ArchivesBelow"),
        ("manifest.json", "Inventory"),
        ("photos/a.jpg", "Photo"),
        ("photos/*.jpg", "NamePattern"),
        ("[odd].tar", "Archive"),
    ],
)
def test_each_value_finds_its_kind(tmp_path: Path, name: str, kind: str) -> None:
    for each in ("photos/a.jpg", "photos.csv/a.jpg", "m.csv", "m.PARQUET", "manifest.json", "m.jsonl.gz", "names.txt"):
        storage.write_bytes(f"{tmp_path}/{each}", b"")
    for each in ("x.tar", "[odd].tar"):
        with tarfile.open(tmp_path / each, "w") as archive:
            archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    assert type(registry.source_of(f"{tmp_path}/{name}")).__name__ == kind
