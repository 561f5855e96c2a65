"""Photos that end their decoder, through the whole job on a cluster: a row each, and nobody else's is touched."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from pipeline.published.catalog import Catalog
from tests.conftest import REPOSITORY, RayCluster
from tests.integration.test_geotag import codes, geotag
from tests.pipeline.read.bad_decoders import BLOAT, CRASH, SLEEP
from tests.support.photo_samples import china_jpeg, flower_jpeg

BAD = {
    "crash": (CRASH, "decoder_crashed", "its decoder ended by SIGSEGV, twice"),
    "sleep": (SLEEP, "decoder_timeout", "not decoded within 2 s, twice"),
    "bloat": (BLOAT, "too_large", "decoding needs more than the 704 MiB of memory that it may take"),
}


def write_code(folder: Path) -> None:
    """Copy the code to `folder`, with a decoder in it that a file's first bytes command, and that has 2 s for each.

    A job's workers take their code from its PYTHONPATH: so the product needs no opening for tests.
    """
    for package in ("jobs", "model", "pipeline", "training"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("bundled"))
    shutil.copy(REPOSITORY / "tests" / "pipeline" / "read" / "bad_decoders.py", folder)
    reader = folder / "pipeline" / "read" / "reader.py"
    code = reader.read_text()
    for old, new in (
        ("decode: Decode = decode_photo", "decode: Decode = bad_decoders.decode_photo"),
        ("decode_timeout_s: float = 60.0", "decode_timeout_s: float = 2.0"),
        ("import pyarrow as pa\n", "import pyarrow as pa\nimport bad_decoders\n"),
    ):
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    reader.write_text(code)


@pytest.mark.ray
def test_bad_files_cost_their_own_rows_only(anywhere: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_code(tmp_path)
    photos, output = tmp_path / "photos", str(tmp_path / "out")
    photos.mkdir()
    for index in range(80):
        (photos / f"{index}.jpg").write_bytes(china_jpeg() if index % 2 else flower_jpeg())
    for name, (data, _, _) in BAD.items():
        (photos / f"{name}.jpg").write_bytes(data)
    arguments = ["--photos", photos, "--output", output, "--model", tiny_checkpoint]
    arguments += ["--limits.max-memory-bytes", 16 << 20]
    answer = geotag(anywhere.environment | {"PYTHONPATH": str(tmp_path)}, *arguments, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    expected = {f"{photos}/{index}.jpg": None for index in range(80)}
    assert codes(output) == expected | {f"{photos}/{name}.jpg": code for name, (_, code, _) in BAD.items()}
    failed = Catalog(output).sql("SELECT uri, error_message FROM photos WHERE error_code IS NOT NULL").fetchall()
    assert dict(failed) == {f"{photos}/{name}.jpg": message for name, (_, _, message) in BAD.items()}
    distinct = "SELECT count(DISTINCT (lat_deg, lon_deg, content_hash)) FROM photos WHERE status <> 'failed'"
    assert Catalog(output).sql(distinct).fetchall() == [(2,)]  # both pictures' rows are all alike

    def is_decoder(title: str) -> bool:
        return "pipeline.read.isolation" in title and str(tmp_path) in title

    deadline_s = time.monotonic() + 60
    while decoders := [title for title in anywhere.processes().values() if is_decoder(title)]:
        assert time.monotonic() < deadline_s, f"left behind by the job's workers: {decoders}"
        time.sleep(0.5)
