"""The tokens of a frozen backbone, computed once and read in every epoch: the backbone is what training waits for.

A cache is a folder or prefix of Arrow files, each written whole, and index.json, written last:

    tokens-3f0c9a11d2e4/train-00000.871.arrow       the number of a shard, and of the photos that could be read
    tokens-3f0c9a11d2e4/validation-00000.90.arrow
    tokens-3f0c9a11d2e4/index.json

Its name is a hash of the backbone, its weights, the preprocessing, and the photos' names and versions (a local file's
time and size, a store's ETag), so that what any of these changes is computed anew beside it. Photos are seen as when
serving: no crops, mirror images or colours.

A training photo's shard is drawn at random, so that those of a few shards are like those of all: they are mixed, then
the next few are read. What a store or disk is asked for is whole files, one after the other.

Shapes: N tokens of a photo (of all its views), D width, M photos of a shard, B batch, H and W height (of all views) and
width in pixels, C 3 colours.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from training.data.dataset import PhotoSource, Shards
from training.fit.team import Team

log = logging.getLogger(__name__)

_FORMAT = 1
_INDEX = "index.json"
_NAME = re.compile(r"(train|validation)-(\d{5,})\.(\d+)\.arrow")
_ROW, _TOKENS, _HASH = "row", "tokens", b"blake2b"
_SHARD_BYTES = 64 << 20
_BUFFER_BYTES = 2 << 30
"""So much each process keeps in memory: half of it is being mixed, the other half being read."""
_BATCH_SIZE = 32
_TELL_S = 10.0
_ASKING_THREADS = 32

Tokens = NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class TokenCache:
    """Where the tokens of a training's photos are, or will be.

    Attributes:
        folder: the cache's own folder or prefix.
        shape: N and D.
        train_shards, validation_shards: the rows of the source whose tokens each shard holds.
        max_failed_fraction: more photos that can't be read or decoded than this end the filling.
    """

    folder: str
    shape: tuple[int, int]
    train_shards: tuple[NDArray[np.int64], ...]
    validation_shards: tuple[NDArray[np.int64], ...]
    max_failed_fraction: float = 0.02

    @staticmethod
    def planned(
        uri: str,
        backbone: Mapping[str, Tensor],
        about: Mapping[str, Any],
        shape: tuple[int, int],
        uri_N: Sequence[str],
        train_M: NDArray[np.int64],
        validation_M: NDArray[np.int64],
        max_failed_fraction: float = 0.02,
    ) -> TokenCache:
        """Return the cache below `uri` for some photos and the backbone with these weights.

        Args:
            about: what else decides what the tokens are, as JSON values: architecture, preprocessing, precision.
            uri_N: the source's photos; each is asked for its version.
        """
        digest = hashlib.sha256(json.dumps([_FORMAT, about, shape], sort_keys=True).encode())
        for name in sorted(backbone):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(backbone[name].detach().cpu().numpy()).tobytes())
        for rows_M in (train_M, validation_M):
            uri_M = [uri_N[row] for row in rows_M]
            with ThreadPoolExecutor(_ASKING_THREADS) as threads:
                version_M = list(threads.map(_version, uri_M))
            lines = (f"{row} {uri} {version}" for row, uri, version in zip(rows_M, uri_M, version_M, strict=True))
            digest.update("\n".join([str(len(rows_M)), *lines]).encode("utf-8", "surrogatepass"))
        key = digest.hexdigest()[:12]
        shuffled_M = np.random.default_rng(int(key, 16)).permutation(train_M)
        return TokenCache(
            storage.join(uri, f"tokens-{key}"),
            shape,
            _split(shuffled_M, shape),
            _split(validation_M, shape),
            max_failed_fraction,
        )

    @property
    def name(self) -> str:
        """The cache's own name: the hash that it is found by."""
        return self.folder.rpartition("/")[2]

    @property
    def photos(self) -> int:
        """How many photos it is for."""
        return sum(map(len, (*self.train_shards, *self.validation_shards)))

    @property
    def bytes_a_photo(self) -> int:
        """What a photo's tokens take."""
        return 2 * self.shape[0] * self.shape[1]

    @property
    def shards(self) -> Shards:
        """In which order training photos are to be drawn, so that each shard is read once an epoch."""
        shard_N = np.zeros(1 + max((int(rows_M.max()) for rows_M in self.train_shards), default=0), np.int64)
        for number, rows_M in enumerate(self.train_shards):
            shard_N[rows_M] = number
        return Shards(shard_N, len(self.train_shards), _at_once(self.train_shards, self.shape))

    def training(self) -> TokenStore:
        """Return the training photos' tokens."""
        return TokenStore(self, "train")

    def validation(self) -> TokenStore:
        """Return the validation photos' tokens."""
        return TokenStore(self, "validation")

    def fill(self, compute: Callable[[Tensor], Tensor], photos: PhotoSource, team: Team) -> None:
        """Compute the tokens that are not there yet; each process of a team computes its share of the shards.

        Args:
            compute: uint8 pixels_BHWC on the team's device → tokens_BND.
            photos: decoded as when serving.

        Raises:
            ValueError: too many photos can't be read, or their tokens are no float16 numbers; in every process.
        """
        rows, there = self._rows, self._found()
        is_whole = rows.keys() <= there.keys() and storage.exists(storage.join(self.folder, _INDEX))
        if team.from_first(is_whole):
            return
        todo = team.from_first([name for name in rows if name not in there])
        mine = [(*name, rows[name]) for name in todo[team.rank :: team.size]]
        overflown = self._compute(mine, compute, photos, team)
        if float(team.sum(torch.tensor([float(overflown)], device=team.device))) > 0:
            raise ValueError(
                "the backbone's tokens are not finite numbers of 16 bits: train without --cache-tokens"
                " (and with --recipe.precision fp32)"
            )
        found = team.from_first(self._found())
        failed = self.photos - sum(found.values())
        if failed > self.max_failed_fraction * self.photos:
            if team.rank == 0:
                self._forget_incomplete(found)
            raise ValueError(
                f"{failed} of the {self.photos} photos whose tokens are to be kept could not be read or decoded, more "
                f"than {self.max_failed_fraction:.1%} (max_failed_fraction): the log names them"
            )
        if team.rank == 0:
            index = {"format": _FORMAT, "tokens": self.shape[0], "width": self.shape[1], "photos": self.photos}
            index |= {"failed": failed, "shards": len(rows)}
            storage.write_bytes(storage.join(self.folder, _INDEX), (json.dumps(index, indent=2) + "\n").encode())
        team.from_first(None)  # the others go on when the mark is there

    @property
    def _rows(self) -> dict[tuple[str, int], NDArray[np.int64]]:
        parts = {"train": self.train_shards, "validation": self.validation_shards}
        return {(part, number): rows_M for part, shards in parts.items() for number, rows_M in enumerate(shards)}

    def _found(self) -> dict[tuple[str, int], int]:
        """How many photos each shard that is there holds."""
        names = (entry.uri.rpartition("/")[2] for entry in storage.list_files(self.folder))
        return {(match[1], int(match[2])): int(match[3]) for name in names if (match := _NAME.fullmatch(name))}

    def _forget_incomplete(self, found: dict[tuple[str, int], int]) -> None:
        rows = self._rows
        for (part, number), count in found.items():
            if count < len(rows[part, number]):
                storage.delete(_shard_uri(self.folder, part, number, count))

    def _compute(
        self,
        shards: list[tuple[str, int, NDArray[np.int64]]],
        compute: Callable[[Tensor], Tensor],
        photos: PhotoSource,
        team: Team,
    ) -> bool:
        """Write some shards; whether a token was no finite number of 16 bits, which ends it."""
        rows = [row for _, _, rows_M in shards for row in rows_M.tolist()]
        ends = np.cumsum([len(rows_M) for _, _, rows_M in shards])
        shard, done = 0, 0
        begin_s = told_s = time.monotonic()
        pending: list[tuple[int, Tokens]] = []
        for row_B, pixels_BHWC in photos.batches(rows, _BATCH_SIZE):
            if len(row_B):
                tokens_BND = compute(torch.from_numpy(pixels_BHWC).to(team.device)).half().cpu()
                if not bool(tokens_BND.isfinite().all()):
                    return True
                pending += zip(row_B.tolist(), tokens_BND.numpy(), strict=True)
            done = min(done + _BATCH_SIZE, len(rows))
            while shard < len(shards) and ends[shard] <= done:
                part, number, rows_M = shards[shard]
                inside = set(rows_M.tolist())
                kept = [(row, tokens_ND) for row, tokens_ND in pending if row in inside]
                data = _encoded(kept, self.shape)
                storage.write_bytes(_shard_uri(self.folder, part, number, len(kept)), data)
                pending = [(row, tokens_ND) for row, tokens_ND in pending if row not in inside]
                shard += 1
            if time.monotonic() > told_s + _TELL_S:
                told_s = time.monotonic()
                log.info("%d of %d photos have their tokens, %.1f/s", done, len(rows), done / (told_s - begin_s))
        return False


class TokenStore:
    """The tokens of one part of a cache, by the rows of the source: an `InputSource`.

    Shards are read by a thread in the order in which they will be needed, as many ahead as memory is for.
    """

    def __init__(self, cache: TokenCache, part: str) -> None:
        self._cache, self._part = cache, part
        rows = cache.train_shards if part == "train" else cache.validation_shards
        self._shard_of = {row: number for number, rows_M in enumerate(rows) for row in rows_M.tolist()}
        self._capacity = 2 * _at_once(rows, cache.shape)
        self._held: dict[int, Future[dict[int, Tokens]]] = {}
        self._counts: dict[tuple[str, int], int] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tokens")

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Tokens]]:
        """Yield (row_B, tokens_BND) for each `batch_size` rows; photos that could not be read are left out."""
        self._counts = self._counts or self._cache._found()
        shard_of = [self._shard_of[row] for row in rows]
        last_use = {shard: place for place, shard in enumerate(shard_of)}
        coming = list(dict.fromkeys(shard_of))[::-1]
        for start in range(0, len(rows), batch_size):
            places = range(start, min(start + batch_size, len(rows)))
            needed = {shard_of[place] for place in places}
            while coming and (self._make_room(last_use, start) or coming[-1] in needed):
                self._hold(coming.pop())
            found = []
            for place in places:
                tokens_ND = self._held[shard_of[place]].result().get(rows[place])
                if tokens_ND is not None:
                    found.append((rows[place], tokens_ND))
            tokens_BND = np.empty((len(found), *self._cache.shape), np.float16)
            for index, (_, tokens_ND) in enumerate(found):
                tokens_BND[index] = tokens_ND
            yield np.array([row for row, _ in found], np.int64), tokens_BND

    def _make_room(self, last_use: dict[int, int], place: int) -> bool:
        """Whether another shard may be held; where there is no room, one that is not needed any more goes."""
        if len(self._held) < self._capacity:
            return True
        spare = next((shard for shard in self._held if last_use.get(shard, -1) < place), None)
        if spare is None:
            return False
        del self._held[spare]
        return True

    def _hold(self, shard: int) -> None:
        if shard not in self._held:
            self._held[shard] = self._reader.submit(self._read, shard)

    def _read(self, shard: int) -> dict[int, Tokens]:
        count = self._counts.get((self._part, shard), 0)
        uri = _shard_uri(self._cache.folder, self._part, shard, count)
        try:
            return _decoded(storage.read_bytes(uri))
        except FileNotFoundError as error:
            raise ValueError(f"{uri} is missing: run the same command again, and it is computed anew") from error
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise ValueError(
                f"{uri} is damaged: remove it and run the same command again, and it is computed anew"
            ) from error


def _encoded(tokens: list[tuple[int, Tokens]], shape: tuple[int, int]) -> bytes:
    """An Arrow file of the rows and tokens of some photos."""
    tokens_MND = np.stack([tokens_ND for _, tokens_ND in tokens]) if tokens else np.empty((0, *shape), np.float16)
    row_M = pa.array([row for row, _ in tokens], pa.int64())
    flat = pa.FixedSizeListArray.from_arrays(pa.array(tokens_MND.reshape(-1)), shape[0] * shape[1])
    array = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float16(), shape), flat)
    table = pa.table({_ROW: row_M, _TOKENS: array}).replace_schema_metadata({_HASH: _digest(tokens_MND)})
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def _decoded(data: bytes) -> dict[int, Tokens]:
    """The photos of an Arrow file by row; Arrow's own errors or ValueError where it is not what was written."""
    table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    tokens_MND = table[_TOKENS].combine_chunks().to_numpy_ndarray()
    if (table.schema.metadata or {}).get(_HASH) != _digest(tokens_MND):
        raise ValueError("its tokens have another hash than when they were written")
    return dict(zip(table[_ROW].to_pylist(), tokens_MND, strict=True))


def _digest(tokens_MND: NDArray[np.float16]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(tokens_MND).tobytes(), digest_size=16).hexdigest().encode()


def _version(uri: str) -> str:
    try:
        return storage.head(uri).etag
    except OSError:  # reading it will fail, and say why
        return ""


def _shard_uri(folder: str, part: str, number: int, photos: int) -> str:
    return storage.join(folder, f"{part}-{number:05d}.{photos}.arrow")


def _photos_a_shard(shape: tuple[int, int]) -> int:
    return max(1, _SHARD_BYTES // (2 * shape[0] * shape[1]))


def _split(rows_M: NDArray[np.int64], shape: tuple[int, int]) -> tuple[NDArray[np.int64], ...]:
    size = _photos_a_shard(shape)
    return tuple(rows_M[start : start + size] for start in range(0, len(rows_M), size))


def _at_once(shards: tuple[NDArray[np.int64], ...], shape: tuple[int, int]) -> int:
    """How many shards are mixed at a time: all, where memory is for them."""
    fit = max(1, _BUFFER_BYTES // (2 * _photos_a_shard(shape) * 2 * shape[0] * shape[1]))
    return max(1, len(shards)) if len(shards) <= 2 * fit else fit
