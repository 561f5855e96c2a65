"""Training on a Ray cluster: Ray Train keeps the workers, Ray Data streams decoded photos to each of them.

Shapes: N photos of the source, B batch, H and W height and width in pixels, C 3 colours.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.util
import torch
from numpy.typing import NDArray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.torch.config import _TorchBackend
from torch import Tensor

from model.geodecoder import GeoDecoder, GeoDecoderConfig
from pipeline import schema
from pipeline.cluster.ray_cluster import Driver
from pipeline.decode.photo import DecodeTarget
from pipeline.read.reader import IsolatedReader, ReaderSettings
from training.data.dataset import Pixels, stack_batch
from training.fit.loop import Progress, Task, TrainingLoop, Upkeep
from training.fit.team import Sharding, Team, use_interface_of

log = logging.getLogger(__name__)

_ROWS_PER_BLOCK = 64


@dataclass(frozen=True)
class Workers:
    """The processes that train together on a cluster.

    Attributes:
        count: how many, at most.
        least: go on with as few as this where not all can be had, and grow again later; all are needed if 0.
        cpus_each: processors that each worker reserves, for its decoders and for its network's threads.
        decoders_each: tasks that decode for each worker; the network has a thread for each processor beside these.
        sharding: ddp (each worker has the whole network) or fsdp (FSDP2: weights and optimizer are shared out).
        failures: so many times the workers are started again after one was lost; the last snapshot is where they go on.
    """

    count: int = 2
    least: int = 0
    cpus_each: float = 2.0
    decoders_each: int = 1
    sharding: Sharding = "ddp"
    failures: int = 3

    def __post_init__(self) -> None:
        if min(self.count, self.decoders_each) < 1 or self.cpus_each <= 0 or min(self.least, self.failures) < 0:
            raise ValueError("need 1 worker, 1 decoder each and some processor; least and failures may not be negative")

    @property
    def threads_each(self) -> int:
        """How many threads each worker's network has."""
        return max(1, int(self.cpus_each) - self.decoders_each)


@dataclass(frozen=True, eq=False)
class Network:
    """The network that a training starts from: the same in every process.

    `weights`: a state dict to begin with, in place of the random numbers of `seed`; parts that it lacks stay random.
    """

    config: GeoDecoderConfig
    class_counts: tuple[int, ...]
    seed: int = 0
    weights: dict[str, Tensor] | None = None

    def build(self) -> GeoDecoder:
        """Return it, built."""
        torch.manual_seed(self.seed)
        model = GeoDecoder(self.config, self.class_counts)
        if self.weights is not None:
            model.load_state_dict(self.weights, strict=False)
        return model


@dataclass(frozen=True, eq=False)
class Photos:
    """Where the photos are and the sizes that they are decoded to, for training and for validation."""

    uri_N: pa.LargeStringArray
    target: DecodeTarget
    validation_target: DecodeTarget


def fit(
    network: Network,
    task: Task,
    photos: Photos,
    upkeep: Upkeep,
    workers: Workers,
    gpus: int = 0,
    driver: Driver | None = None,
) -> Progress:
    """Train on the Ray cluster that was joined, on GPUs where it has any; the result is the last snapshot.

    A worker that is lost costs the steps since the last snapshot: all workers start again from there, fewer of them
    where `least` allows it. When this process dies, so do they, and the same call goes on. Each has `driver` in common
    with this process; by default, its code.

    Raises:
        ValueError: as `TrainingLoop.run` does.
        ray.train.TrainingFailedError: workers were lost too often, or have a bug.
    """
    if workers.least > workers.count:
        raise ValueError(f"at least {workers.least} of {workers.count} workers can't be: give more --num-workers")
    number: Any = (workers.least, workers.count) if workers.least else workers.count  # the types are Train v1's
    scaling = ScalingConfig(
        num_workers=number,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": workers.cpus_each, **({"GPU": 1} if gpus else {})},
    )
    work: Any = functools.partial(
        _work, driver or Driver.here(uses_local_paths=False), network, task, photos, upkeep, workers
    )
    with tempfile.TemporaryDirectory(prefix="graticule-train-") as folder:
        # Ray keeps nothing of ours: snapshots go where the output is, through our own storage.
        kept: dict[str, Any] = {"storage_path": folder, "logging_config": LoggingConfig(log_level="WARNING")}
        run_config = RunConfig(failure_config=FailureConfig(max_failures=workers.failures), **kept)
        trainer = TorchTrainer(
            work,
            torch_config=_TorchBetweenNodes(),
            scaling_config=scaling,
            run_config=run_config,
        )
        result: Any = trainer.fit()
    answer = result.return_value
    if isinstance(answer, str):
        raise ValueError(answer)
    assert isinstance(answer, Progress)
    return answer


def _work(
    driver: Driver, network: Network, task: Task, photos: Photos, upkeep: Upkeep, workers: Workers
) -> Progress | str:
    """Be one worker. What is the user's to mend is returned as text: Ray would try an exception again and again."""
    driver.check()
    torch.set_num_threads(workers.threads_each)
    try:
        loop = TrainingLoop(network.build(), task, Team(get_device()), upkeep, workers.sharding)
        sources = [
            StreamedPhotos(photos.uri_N, target, workers.decoders_each)
            for target in (photos.target, photos.validation_target)
        ]
        return loop.run(*sources)
    except ValueError as error:
        return str(error)


class _TorchBetweenNodes(TorchConfig):
    """Ray's way to make the workers one process group, on the network that Ray itself uses."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _MeetingOnRaysNetwork


class _MeetingOnRaysNetwork(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_use_nodes_interface)
        super().on_start(worker_group, backend_config)


def _use_nodes_interface() -> None:
    use_interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


class StreamedPhotos:
    """Photos decoded by tasks beside the worker that asks, in the order asked for, ahead of it.

    Each call of `batches` is a Ray Data pipeline of its own with a bounded number of decoders. They ask for no
    processor, because the worker has reserved theirs with its own: workers that took all processors of a cluster, as
    elastic ones do, would wait for ever for decoders that have none.
    """

    def __init__(self, uri_N: pa.LargeStringArray, target: DecodeTarget, decoders: int) -> None:
        self._uri_N, self._target, self._decoders = uri_N, target, decoders

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        """Yield as `training.data.dataset.PhotoSource` says."""
        if not len(rows):
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that there is no progress bar
        source = _Photos(np.asarray(rows, np.int64), self._uri_N, self._target, min(_ROWS_PER_BLOCK, batch_size))
        photos = ray.data.read_datasource(
            source, override_num_blocks=source.blocks, num_cpus=0, concurrency=self._decoders
        )
        for batch in photos.iter_batches(batch_size=batch_size, batch_format="pyarrow", prefetch_batches=2):
            yield self._unpacked(batch)

    def _unpacked(self, batch: pa.Table) -> tuple[NDArray[np.int64], Pixels]:
        photos = []
        for row, pixels, uri, code, message in zip(*(batch[name].to_pylist() for name in _DECODED), strict=True):
            if pixels is None:
                log.warning("skipped %s: %s: %s", uri, code, message)
            else:
                photos.append((row, np.frombuffer(pixels, np.uint8).reshape(self._target.shape_HWC)))
        return stack_batch(photos, self._target)


_ROW = "row"
_DECODED = (_ROW, schema.PIXELS_HWC, schema.URI, schema.ERROR_CODE, schema.ERROR_MESSAGE)


@functools.lru_cache(maxsize=2)
def _process_reader(settings: ReaderSettings) -> IsolatedReader:
    """One reader, and its decoder, for each worker process and size."""
    return IsolatedReader(settings)


class _Photos(Datasource):
    """Photos to decode, `block_rows` a task: reading is decoding, so that there is one kind of task, which asks for no
    processor (Ray's own ways to make a dataset of a table do)."""

    def __init__(
        self, row_D: NDArray[np.int64], uri_N: pa.LargeStringArray, target: DecodeTarget, block_rows: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._row_D, self._uri_N, self._settings, self._block_rows = row_D, uri_N, ReaderSettings(target), block_rows
        self.blocks = -(-len(row_D) // block_rows)

    def get_name(self) -> str:
        return "Photos"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        del parallelism, data_context  # blocks are as large as batches, so that no batch waits for two
        tasks = []
        for start in range(0, len(self._row_D), self._block_rows):
            row_B = self._row_D[start : start + self._block_rows]
            uris = self._uri_N.take(pa.array(row_B)).to_pylist()
            metadata = BlockMetadata(num_rows=len(row_B), size_bytes=None, exec_stats=None)
            decode = functools.partial(_decoded, row_B, uris, self._settings)
            tasks.append(ReadTask(decode, metadata, per_task_row_limit=per_task_row_limit))
        return tasks


def _decoded(row_B: NDArray[np.int64], uris: list[str], settings: ReaderSettings) -> list[pa.Table]:
    rows = [{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri} for uri in uris]
    read = _process_reader(settings)(pa.Table.from_pylist(rows, schema=schema.MANIFEST))
    return [pa.table({_ROW: row_B, **{name: read[name] for name in _DECODED[1:]}})]
