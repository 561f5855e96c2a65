"""A frozen backbone's tokens: asked for once, kept in files, read one after the other, and the same as if computed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import geodecoder
from model.geodecoder import GeoDecoder
from pipeline import storage
from pipeline.decode.photo import DecodeTarget
from training.data.augment import AugmentConfig
from training.data.dataset import ArraySource, DrawOrder, PhotoStore, Pixels
from training.fit import tokens
from training.fit.loop import Task, TrainingLoop, Upkeep
from training.fit.objective import Labels, Objective
from training.fit.recipe import Recipe
from training.fit.team import Team
from training.fit.tokens import TokenCache

PHOTOS = 20
TRAIN, VALIDATION = np.arange(0, 14), np.arange(14, PHOTOS)
PLACE_N = np.arange(PHOTOS) % 3
IMAGES = np.clip(
    PLACE_N[:, None, None, None] * 80 + np.random.default_rng(0).integers(-30, 31, (PHOTOS, 32, 32, 3)), 0, 255
).astype(np.uint8)
LABELS = Labels(np.stack([PLACE_N, PLACE_N], axis=1), np.full(PHOTOS, -1))
AS_SERVED = AugmentConfig(least_area=1.0, most_stretch=1.0, mirror=False, colour=0.0)
RECIPE = Recipe(epochs=3, batch_size=7, learning_rate=3e-3, backbone_rate=0.0, augment=AS_SERVED, balance=0.0)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four photos each, two of which are mixed at a time: 16 kB shards would hold all that is here."""
    model = network()
    bytes_a_photo = 2 * model.backbone.tokens * model.backbone.width
    monkeypatch.setattr(tokens, "_SHARD_BYTES", 4 * bytes_a_photo)
    monkeypatch.setattr(tokens, "_BUFFER_BYTES", 16 * bytes_a_photo)


def network() -> GeoDecoder:
    torch.manual_seed(0)
    return GeoDecoder(geodecoder.tiny(), (3, 3))


def planned(model: GeoDecoder, folder: Path, uri_N: Sequence[str] = (), **about: object) -> TokenCache:
    backbone = model.backbone
    names = uri_N or [str(number) for number in range(PHOTOS)]
    shape = (backbone.tokens, backbone.width)
    return TokenCache.planned(str(folder), backbone.state_dict(), about, shape, names, TRAIN, VALIDATION)


class Asked(ArraySource):
    """Photos in memory that remembers which were asked for, and of which some can't be had."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        super().__init__(IMAGES)
        self.rows: list[int] = []
        self._bad = bad

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        self.rows += rows
        for row_B, pixels_BHWC in super().batches(rows, batch_size):
            good = ~np.isin(row_B, self._bad)
            yield row_B[good], pixels_BHWC[good]


def filled(folder: Path, photos: Asked | None = None) -> tuple[TokenCache, Objective]:
    model = network()
    objective = Objective(model, RECIPE, LABELS).train()
    cache = planned(model, folder)
    cache.fill(objective.tokens, photos or Asked(), Team())
    return cache, objective


def shards(cache: TokenCache) -> list[Path]:
    return sorted(Path(cache.folder).glob("*.arrow"))


def trained(folder: Path | None, epochs: int = 3) -> tuple[GeoDecoder, Asked]:
    model, photos = network(), Asked()
    recipe = replace(RECIPE, epochs=epochs)
    cache = planned(model, folder) if folder else None
    task = Task(recipe, LABELS, TRAIN, VALIDATION, tokens=cache)
    TrainingLoop(model, task, Team(), Upkeep(quiet=True)).run(photos, photos)
    return model, photos


def test_tokens_are_those_that_the_backbone_says_as_when_serving(tmp_path: Path) -> None:
    cache, objective = filled(tmp_path)
    expected_NND = objective.tokens(torch.from_numpy(IMAGES))
    for store, rows in ((cache.training(), TRAIN), (cache.validation(), VALIDATION)):
        asked = np.random.default_rng(1).permutation(rows).tolist()
        batches = list(store.batches(asked, 5))
        assert np.concatenate([row_B for row_B, _ in batches]).tolist() == asked
        tokens_BND = torch.from_numpy(np.concatenate([x for _, x in batches]))
        assert tokens_BND.dtype == torch.float16
        assert torch.equal(tokens_BND, expected_NND[asked].half())


def test_each_photo_is_asked_for_once_however_long_the_training(tmp_path: Path) -> None:
    first, photos = trained(tmp_path)
    assert sorted(photos.rows) == list(range(PHOTOS))
    second, photos = trained(tmp_path)
    assert photos.rows == []
    assert all(torch.equal(x, second.state_dict()[name]) for name, x in first.state_dict().items())


def test_training_on_tokens_is_training_on_the_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same photos in the same order (here one shard, and so the order that is drawn without any)."""
    monkeypatch.setattr(tokens, "_SHARD_BYTES", 1 << 20)
    with_tokens, _ = trained(tmp_path)
    without, photos = trained(None)
    assert len(photos.rows) == 3 * PHOTOS
    start = network().state_dict()
    for name, x in without.state_dict().items():
        torch.testing.assert_close(with_tokens.state_dict()[name], x, rtol=0, atol=2e-3)
        assert name.startswith("backbone.") <= torch.equal(x, start[name])
    assert any(not torch.equal(x, start[name]) for name, x in with_tokens.state_dict().items())


def test_files_are_read_one_after_the_other_each_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = filled(tmp_path)
    names = [path.name for path in shards(cache)]
    assert names == [f"train-{n:05d}.{m}.arrow" for n, m in enumerate((4, 4, 4, 2))] + [
        f"validation-{n:05d}.{m}.arrow" for n, m in enumerate((4, 2))
    ]
    reads: list[str] = []
    read = storage.read_bytes

    def counted(uri: str) -> bytes:
        reads.append(Path(uri).name)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", counted)
    order = DrawOrder(TRAIN, 0, None, cache.shards)
    store = cache.training()
    for epoch in range(2):
        reads.clear()
        rows = order.rows(epoch * len(TRAIN), (epoch + 1) * len(TRAIN)).tolist()
        assert sorted(rows) == TRAIN.tolist()
        for _ in store.batches(rows, 3):
            assert len(store._held) <= 4
        assert len(reads) == len(set(reads)) <= 4
    # Two shards at a time are mixed: of their photos none is drawn after the next two's.
    turns = [int(cache.shards.shard_N[row]) for row in rows]
    halves = {frozenset(turns[: turns.index(shard)]) for shard in set(turns)}
    assert any(0 < len(half) < 4 for half in halves)


def test_draws_go_through_a_few_shards_at_a_time() -> None:
    shard_N = np.arange(1000) % 10
    drawn = DrawOrder(np.arange(1000), 3, None, tokens.Shards(shard_N, 10, 2)).rows(0, 2000)
    for epoch in (drawn[:1000], drawn[1000:]):
        assert sorted(epoch.tolist()) == list(range(1000))
        turns = [set(shard_N[epoch[start : start + 200]].tolist()) for start in range(0, 1000, 200)]
        assert [len(turn) for turn in turns] == [2] * 5
        assert set.union(*turns) == set(range(10))
        inside = shard_N[epoch[:200]]
        assert (inside[1:] != inside[:-1]).sum() > 50  # both are mixed
    assert drawn[:1000].tolist() != drawn[1000:].tolist()


def test_what_changes_tokens_has_a_cache_of_its_own(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    uris = [str(photos / f"{number}.jpg") for number in range(PHOTOS)]
    for number, uri in enumerate(uris):
        Path(uri).write_bytes(bytes([number]))
    model = network()
    first = planned(model, tmp_path, uris, size=32).name
    assert planned(network(), tmp_path, uris, size=32).name == first
    assert planned(model, tmp_path, uris, size=48).name != first
    Path(uris[16]).write_bytes(b"another picture")
    changed = planned(model, tmp_path, uris, size=32).name
    assert changed != first
    Path(uris[3]).unlink()
    assert planned(model, tmp_path, uris, size=32).name not in (first, changed)
    other = network()
    with torch.no_grad():
        next(other.backbone.parameters()).flatten()[0] += 1e-3
    names = [str(number) for number in range(PHOTOS)]
    assert planned(other, tmp_path, names).name != planned(model, tmp_path, names).name
    assert planned(model, tmp_path, [*names[:-1], "x"]).name != planned(model, tmp_path, names).name


def test_filling_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    cache, objective = filled(tmp_path)
    shutil.rmtree(cache.folder)

    class Stopped(Asked):
        def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
            for number, batch in enumerate(super().batches(rows, 4)):
                if number == 2:
                    raise KeyboardInterrupt
                yield batch

    monkeypatched = pytest.MonkeyPatch()
    monkeypatched.setattr(tokens, "_BATCH_SIZE", 4)
    with monkeypatched.context(), pytest.raises(KeyboardInterrupt):
        cache.fill(objective.tokens, Stopped(), Team())
    monkeypatched.undo()
    assert [path.name for path in shards(cache)] == ["train-00000.4.arrow", "train-00001.4.arrow"]
    rest = Asked()
    cache.fill(objective.tokens, rest, Team())
    there = {*cache.train_shards[0].tolist(), *cache.train_shards[1].tolist()}
    assert set(rest.rows) == set(range(PHOTOS)) - there
    assert len(shards(cache)) == 6


@pytest.mark.parametrize("harm", ["cut short", "other bytes", "no Arrow"])
def test_a_damaged_shard_is_named_and_computed_anew_once_it_is_removed(harm: str, tmp_path: Path) -> None:
    cache, objective = filled(tmp_path)
    path = shards(cache)[1]
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut short": data[:middle],
            "other bytes": data[:middle] + bytes(x ^ 255 for x in data[middle : middle + 8]) + data[middle + 8 :],
            "no Arrow": b"<html>",
        }[harm]
    )
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged: remove it and run the same command again")):
        trained(tmp_path)
    path.unlink()
    _, photos = trained(tmp_path)
    assert sorted(photos.rows) == sorted(cache.train_shards[1].tolist())
    assert path.read_bytes() == data
    assert objective.training


def test_photos_that_cannot_be_read_are_left_out_up_to_a_limit(tmp_path: Path) -> None:
    model = network()
    objective = Objective(model, RECIPE, LABELS).train()
    strict = planned(model, tmp_path)
    bad = Asked([3, 15])
    with pytest.raises(ValueError, match=r"2 of the 20 photos .* more than 2.0%"):
        strict.fill(objective.tokens, bad, Team())
    assert all("." + str(len(rows)) + "." in path.name for path, rows in zip_shards(strict))  # none with a gap stays
    lenient = replace(strict, max_failed_fraction=0.1)
    lenient.fill(objective.tokens, bad, Team())
    for store, rows in ((lenient.training(), TRAIN), (lenient.validation(), VALIDATION)):
        got = np.concatenate([row_B for row_B, _ in store.batches(rows.tolist(), 4)])
        assert got.tolist() == [row for row in rows if row not in (3, 15)]


def zip_shards(cache: TokenCache) -> list[tuple[Path, NDArray[np.int64]]]:
    parts = {"train": cache.train_shards, "validation": cache.validation_shards}
    names = [(path, path.name.split(".")[0].split("-")) for path in shards(cache)]
    return [(path, parts[part][int(number)]) for path, (part, number) in names]


def test_tokens_that_16_bits_cannot_hold_are_refused(tmp_path: Path) -> None:
    def huge(pixels_BSSC: Tensor) -> Tensor:
        return torch.full((len(pixels_BSSC), 2, 3), 1e6)

    cache = replace(planned(network(), tmp_path), shape=(2, 3))
    with pytest.raises(ValueError, match="train without --cache-tokens"):
        cache.fill(huge, Asked(), Team())
    assert not (Path(cache.folder) / "index.json").exists()


def test_shards_are_arrow_files_that_others_can_read(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path)
    table = pa.ipc.open_file(shards(cache)[0]).read_all()
    assert table.column_names == ["row", "tokens"]
    assert table["row"].to_pylist() == cache.train_shards[0].tolist()
    assert table["tokens"].type.shape == list(cache.shape)


def test_photos_from_files_are_decoded_as_when_serving(tmp_path: Path, archive: Path) -> None:
    """Through the store that the command uses, whose photos are of another size than the network's."""
    uris = sorted(str(path) for path in archive.glob("*.png"))[:PHOTOS]
    model = network()
    objective = Objective(model, RECIPE, LABELS).train()
    cache = planned(model, tmp_path, uris)
    store = PhotoStore(uris, DecodeTarget.of(model.config.preprocessing))
    cache.fill(objective.tokens, store, Team())
    [(_, pixels_BHWC)] = store.batches(TRAIN.tolist(), PHOTOS)
    [(_, tokens_BND)] = cache.training().batches(TRAIN.tolist(), PHOTOS)
    expected_BND = objective.tokens(torch.from_numpy(pixels_BHWC))
    assert torch.equal(torch.from_numpy(tokens_BND), expected_BND.half())
    os.utime(uris[0])  # written anew: it may be another picture
    assert planned(model, tmp_path, uris).name != cache.name
