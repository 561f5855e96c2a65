"""The same job with photos, model and answers on an object store."""

from __future__ import annotations

import sys
from pathlib import Path

import boto3
import pytest
import ray

from jobs import run_command
from jobs.geotag_archive import ArchiveSettings, run
from pipeline import storage
from tests.conftest import RayCluster
from tests.integration.test_geotag import codes, geotag
from tests.support.photo_samples import china_jpeg


@pytest.mark.ray
@pytest.mark.s3
def test_an_archive_on_s3_and_its_rerun(anywhere: RayCluster, s3_bucket: str, tiny_checkpoint: Path) -> None:
    root = f"s3://{s3_bucket}/job"
    names = ["a b.jpg", "ü/日.jpg", "100%.jpg", "a%20b.jpg", "x#1.jpg", "x//y.jpg", "x/../y.jpg", "[1]*?.jpg"]
    client = boto3.Session().client("s3", region_name="us-east-1")
    for name in names:
        client.put_object(Bucket=s3_bucket, Key=f"job/photos/{name}", Body=china_jpeg())
    client.put_object(Bucket=s3_bucket, Key="job/photos/empty.jpg", Body=b"")
    for path in tiny_checkpoint.iterdir():
        storage.write_bytes(f"{root}/model/{path.name}", path.read_bytes())
    expected = {f"{root}/photos/{name}": None for name in names} | {f"{root}/photos/empty.jpg": "empty"}
    # The trailing slash is how people write prefixes.
    arguments = ("--photos", f"{root}/photos/", "--output", f"{root}/out/", "--model", f"{root}/model")

    first = geotag(anywhere.environment, *arguments)
    assert first.returncode == 0, first.stderr
    assert codes(f"{root}/out") == expected
    assert list(storage.list_files(f"{root}/out/staging")) == []

    again = geotag(anywhere.environment, *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"Nothing to do: all {len(expected)} photos have their row")


@pytest.mark.s3
@pytest.mark.parametrize(
    ("photos", "output", "message"),
    [
        (
            "s3://graticule-no-such-bucket/p",
            "TMP/out",
            "error: can't read --photos s3://graticule-no-such-bucket/p: not",
        ),
        ("s3://BUCKET/nothing-here", "TMP/out", "the folder or prefix is empty or missing"),
        ("TMP", "s3://graticule-no-such-bucket/o", "error: can't write to s3://graticule-no-such-bucket/o: not found"),
        ("TMP", "s3://BUCKET/a*b", "choose one without"),
    ],
)
def test_usage_errors_of_an_object_store(
    s3_bucket: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    photos: str,
    output: str,
    message: str,
) -> None:
    (tmp_path / "a.jpg").write_bytes(china_jpeg())
    options = ["--photos", photos, "--output", output, "--model", str(tiny_checkpoint)]
    options = [option.replace("TMP", str(tmp_path)).replace("BUCKET", s3_bucket) for option in options]
    monkeypatch.setattr(sys, "argv", ["geotag_archive", *options])
    with pytest.raises(SystemExit) as stopped:
        run_command(ArchiveSettings, run)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not ray.is_initialized()
