"""Listing by several requests at once gives what one after the other gives, sooner, with as much memory."""

from __future__ import annotations

import bisect
import random
import string
import threading
import time
from collections.abc import Iterator

import boto3
import pytest

from pipeline import storage
from pipeline.storage import clients
from pipeline.storage import listing as parallel_listing
from pipeline.storage.listing import Page, list_in_order
from tests.conftest import forget_s3_clients


class Store:
    """Answers as an object store does, pages of ten keys; counts what is asked and what nobody took yet."""

    def __init__(self, keys: list[str], delay_s: float = 0.0) -> None:
        self.keys, self.requests, self.at_once, self.most_at_once = keys, 0, 0, 0
        self._delay_s = delay_s
        self._lock = threading.Lock()

    def fetch(self, token: str | None, after: str | None) -> Page[str]:
        with self._lock:
            self.requests += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self._delay_s)
        with self._lock:
            self.at_once -= 1
        start = int(token) if token else bisect.bisect_right(self.keys, after) if after else 0
        keys = self.keys[start : start + 10]
        return Page(keys, [f"entry {key}" for key in keys], str(start + 10) if start + 10 < len(self.keys) else None)


def names(kind: str, rng: random.Random) -> list[str]:
    count = rng.randrange(3000)
    match kind:
        case "numbers":
            keys = {f"p/img_{index:08d}.jpg" for index in range(count)}
        case "hashes":
            keys = {f"p/{rng.getrandbits(64):x}" for _ in range(count)}
        case "folders":
            keys = {f"p/{2000 + i % 9}/{i % 12:02d}/{i}.jpg" for i in range(count)}
        case "one full folder":
            keys = {f"p/{i % 50}/{i if i % 50 == 7 else i % 3}" for i in range(count)}
        case "long and alike":
            keys = {"p/" + "x" * 300 + str(index) for index in range(count)}
        case "not ASCII":
            keys = {f"p/日本{chr(0x4E00 + index % 200)}{chr(0x1F600 + index // 200)}" for index in range(count)}
        case _:
            letters = "a\x7f~ /.\n\x01é日\ud7ff\ue000\U0001f600\U0010ffff"
            keys = {"p/" + "".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(count)}
    return sorted(keys)


KINDS = ["numbers", "hashes", "folders", "one full folder", "long and alike", "not ASCII", "anything"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_once_and_in_order(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(20):
        store = Store(names(kind, rng))
        assert list(list_in_order(store.fetch, "p/")) == [f"entry {key}" for key in store.keys]
        assert store.requests <= 20 + 3 * len(store.keys) / 10


@pytest.mark.parametrize("kind", ["numbers", "hashes", "folders", "long and alike", "not ASCII"])
def test_many_pages_are_asked_for_at_once(kind: str) -> None:
    keys = max((names(kind, random.Random(seed)) for seed in range(5)), key=len)
    store = Store(keys, delay_s=0.01)
    start = time.perf_counter()
    assert len(list(list_in_order(store.fetch, "p/"))) == len(keys)
    one_by_one_s = 0.01 * len(keys) / 10
    assert time.perf_counter() - start < one_by_one_s / 1.5
    assert 4 < store.most_at_once <= 16


def test_nothing_runs_ahead_of_who_takes_it() -> None:
    store = Store([f"p/{index:06d}" for index in range(20_000)])
    listing = list_in_order(store.fetch, "p/")
    next(listing)
    assert store.requests == 1
    for _ in range(100):
        next(listing)
    time.sleep(0.05)
    assert store.requests < parallel_listing._PAGES_HELD + 40
    listing.close()  # type: ignore[attr-defined]


def test_a_store_without_order_is_listed_one_page_after_the_other() -> None:
    keys = [f"p/{index}" for index in range(500)]
    random.Random(0).shuffle(keys)
    store = Store(keys)
    assert list(list_in_order(store.fetch, "p/")) == [f"entry {key}" for key in keys]
    assert store.requests == 50


def test_order_that_is_lost_on_the_way_is_an_error() -> None:
    store = Store([f"p/{index:04d}" for index in range(500)])
    store.keys[300:310] = store.keys[309:299:-1]
    with pytest.raises(OSError, match="does not list in the order of names"):
        list(list_in_order(store.fetch, "p/"))


def test_an_error_of_the_store_is_raised_in_its_turn() -> None:
    store = Store([f"p/{index:04d}" for index in range(500)])

    def failing(token: str | None, after: str | None) -> Page[str]:
        page = store.fetch(token, after)
        if page.keys and page.keys[-1] > "p/0250":
            raise PermissionError("no")
        return page

    with pytest.raises(PermissionError):
        list(list_in_order(failing, "p/"))


@pytest.fixture
def small_pages() -> Iterator[list[str]]:
    """Pages of three keys from the real server; the list has an item for each."""
    pages: list[str] = []

    def ask_for_three(params: dict[str, object], **_: object) -> None:
        params["MaxKeys"] = 3
        pages.append("page")

    forget_s3_clients()
    clients.s3_client().meta.events.register("before-parameter-build.s3.ListObjectsV2", ask_for_three)
    yield pages
    forget_s3_clients()


@pytest.mark.s3
def test_a_real_server_lists_the_same(s3_bucket: str, small_pages: list[str]) -> None:
    client = boto3.Session().client("s3", region_name="us-east-1")
    odd = [
        "x//y",
        "x/../y",
        "x/./y",
        "/lead",
        "tab\t",
        "back\\slash",
        "\x7fdel",
        "ü ñ/ж",
        "100%+&=#?",
        "日",
        "folder/",
        "\U0001f600",
    ]
    keys = [f"listed/{name}" for name in (*odd, *string.ascii_letters, *(f"deep/{i:02d}/{i}" for i in range(40)))]
    for key in keys:
        client.put_object(Bucket=s3_bucket, Key=key, Body=b"" if key.endswith("/") else b"x")
    found = [entry.uri for entry in storage.list_files(f"s3://{s3_bucket}/listed")]
    assert found == sorted(f"s3://{s3_bucket}/{key}" for key in keys if key != "listed/folder/")
    assert len(small_pages) > len(keys) / 3
