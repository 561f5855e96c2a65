"""The cluster launcher's file against Ray's schema, and the S3 policies by a run that has no other rights."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pyarrow.parquet as pq
import pytest
import ray.autoscaler
import yaml
from moto.server import ThreadedMotoServer

from model.checkpoint import Checkpoint
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import Locator, LocatorSettings
from pipeline.published import records
from pipeline.published.catalog import Catalog
from pipeline.read.reader import Reader, ReaderSettings
from pipeline.run.plan import make_plan
from pipeline.run.publish import publish
from pipeline.run.staging import Stage
from pipeline.run.verify import verify_output
from pipeline.storage import lease
from tests.conftest import REPOSITORY, forget_s3_clients
from tests.support.photo_samples import china_jpeg

FOLDER = REPOSITORY / "infra" / "aws"
POLICIES = ("photo_reader", "output_writer", "answers_reader", "head_autoscaler")


def cluster() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    return read


def test_ray_own_schema() -> None:
    ray_schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster(), ray_schema)


def test_head_stays_and_workers_are_spot() -> None:
    types = cluster()["available_node_types"]
    head = types.pop(cluster()["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    (worker,) = types.values()
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["min_workers"] == worker["max_workers"] == cluster()["max_workers"]  # a run counts nodes once
    for node in (head, worker):
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_ray_starts_with_its_token_and_a_private_dashboard() -> None:
    starts = [c for kind in ("head", "worker") for c in cluster()[f"{kind}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command and "--disable-usage-stats" in command for command in starts)
    assert re.findall(r"--dashboard-host=(\S+)", starts[0]) == ["127.0.0.1"]
    assert "0.0.0.0" not in (FOLDER / "cluster.yaml").read_text()
    assert "~/.ray/auth_token" in cluster()["file_mounts"]


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_least(name: str) -> None:
    policy = json.loads((FOLDER / f"{name}.json").read_text())
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert statement["Effect"] == "Allow"
        assert not [action for action in actions if "*" in action], name
        if statement["Resource"] == "*":  # EC2 has no narrower one for looking
            assert all(action.startswith("ec2:Describe") for action in actions)
        told = (FOLDER / "README.md").read_text()
        assert name == "head_autoscaler" or all(f"`{action}`" in told for action in actions)


@pytest.fixture
def strict_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that becomes somebody with these policies alone, on a server of moto's that checks rights."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "admin")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "admin")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

    def check_rights(is_on: bool) -> None:
        # After so many calls; a form's content type would be parsed as one.
        request = urllib.request.Request(
            f"{endpoint}/moto-api/reset-auth", b"0" if is_on else b"inf", {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    def become(*policies: str) -> None:
        check_rights(False)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "admin")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "admin")
        iam = boto3.client("iam")
        user = "-".join(policies) or "nobody"
        iam.create_user(UserName=user)
        for policy in policies:
            document = json.loads((FOLDER / f"{policy}.json").read_text())
            for statement in document["Statement"]:
                statement.pop("Condition", None)  # moto knows none of S3's
                if "s3:DeleteObject" in statement["Action"]:  # moto asks for it on the bucket, S3 on each object
                    statement["Resource"] = [statement["Resource"], "arn:aws:s3:::archive"]
            iam.put_user_policy(UserName=user, PolicyName=policy, PolicyDocument=json.dumps(document))
        key = iam.create_access_key(UserName=user)["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        check_rights(True)
        forget_s3_clients()

    boto3.client("s3").create_bucket(Bucket="archive")
    forget_s3_clients()
    yield become
    check_rights(False)
    server.stop()
    forget_s3_clients()


def tag(photos: str, output: str, checkpoint_folder: Path) -> None:
    """What the job does with the store, in this process."""
    checkpoint = Checkpoint.load(checkpoint_folder)
    storage.check_writable(output)
    with records.held(output, "r1", lease.LeaseSettings()) as held:
        stage = Stage(output, "r1", held.epoch)
        stage.put_settings({})
        plan = make_plan([photos], stage, [], checkpoint.model_id, retry_failed=False, limit=None)
        read = Reader(ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)))
        locate = Locator(LocatorSettings(str(checkpoint_folder), checkpoint.model_id, "r1", engine="torch"))
        for file in plan.files:
            stage.put_rows(locate(read(pq.read_table(file, schema=schema.MANIFEST))))
        published = publish(stage)
        held.commit(
            {
                "run_id": "r1",
                "finished_at": "2026-11-25T00:00:00+00:00",
                "model_id": checkpoint.model_id,
                "photos": {"located": published.located, "failed": published.failed},
                "files": [asdict(file) for file in published.files],
            }
        )
        stage.delete()


def test_the_policies_suffice_and_no_right_is_too_many(strict_s3: Any, tiny_checkpoint: Path) -> None:
    photos, output = "s3://archive/photos", "s3://archive/geotags"
    for name in ("one", "two"):
        storage.write_bytes(f"{photos}/{name}.jpg", china_jpeg())

    strict_s3("photo_reader", "output_writer")
    tag(photos, output, tiny_checkpoint)
    assert verify_output(output) == []
    with pytest.raises(OSError, match="one"):
        storage.write_bytes(f"{photos}/one.jpg", b"")

    strict_s3("answers_reader")
    assert Catalog(output).rows("SELECT count(*) AS n FROM photos WHERE status = 'located'").to_pylist() == [{"n": 2}]
    with pytest.raises(OSError, match="photos/one"):
        storage.read_bytes(f"{photos}/one.jpg")
    with pytest.raises(ValueError, match="can't write to"):
        storage.check_writable(output)

    strict_s3("photo_reader")
    with pytest.raises(ValueError, match="can't write to"):
        tag(photos, output, tiny_checkpoint)
