"""The job before a store that fails half of the time: no photo is lost, and the next run heals what was given up."""

from __future__ import annotations

import collections
import logging
import os
from pathlib import Path

import pytest

from pipeline import schema, storage
from tests.conftest import ray_environment
from tests.integration.test_geotag import codes, geotag
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.photo_samples import china_image, encode

log = logging.getLogger(__name__)

PHOTOS = 80


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.timeout(900)
def test_an_archive_behind_a_faulty_store_is_healed_by_the_next_run(
    s3_bucket: str, tiny_checkpoint: Path, cache_home: Path, tmp_path: Path
) -> None:
    root, photo = f"s3://{s3_bucket}/faulty", encode(china_image().resize((160, 107)), "jpeg")
    uris = [f"{root}/photos/{index:03d}.jpg" for index in range(PHOTOS)]
    for index, uri in enumerate(uris):
        storage.write_bytes(uri, photo + b"%d" % index)
    arguments = ("--photos", f"{root}/photos", "--output", f"{root}/out", "--model", tiny_checkpoint)
    # All else has to get through as well, which is up to the storage module's own patience.
    others = {Fault.BUSY: 0.1, Fault.RESET: 0.05}
    with FaultyStore(os.environ["AWS_ENDPOINT_URL"], f"/{s3_bucket}/faulty/photos/", others=others) as proxy:
        # Not the shared cluster: its workers would go past the proxy.
        environment = os.environ | ray_environment(tmp_path / "token") | {"AWS_ENDPOINT_URL": proxy.endpoint}
        environment["XDG_CACHE_HOME"] = str(cache_home)
        environment.pop("RAY_ADDRESS", None)
        hasty = ("--fetch.budget-s", 2, "--fetch.attempt-timeout-s", 0.5, "--max-failed-fraction", 1)
        # The proxy's faults depend on names: with a run of the clock's name they would be others each time.
        first = geotag(environment, *arguments, *hasty, "--run-id", "r1", timeout_s=600)
        assert first.returncode == 0, first.stderr
        found = codes(f"{root}/out")
        assert sorted(found) == uris
        failed = collections.Counter(filter(None, found.values()))
        assert failed, "nothing to heal: the proxy did nothing"
        assert set(failed) <= set(schema.TRANSIENT_ERRORS)
        assert all(proxy.tally[fault] for fault in Fault), proxy.tally
        log.info("%d photos, failed: %s; the proxy saw %s", PHOTOS, dict(failed), dict(proxy.tally))

        proxy.is_healthy = True
        second = geotag(environment, *arguments)
        assert second.returncode == 0, second.stderr
        assert f"{failed.total()} photos processed" in second.stdout
    assert codes(f"{root}/out") == dict.fromkeys(uris)
