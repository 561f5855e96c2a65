"""What a user may say of a run, each with its flag on the command line of `jobs.geotag_archive`."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.engines import EngineName, Precision
from model.engines.tensorrt_engine import TensorRtSettings
from model.readout import AUTO, PointRule
from pipeline import storage
from pipeline.cluster.logs import LogFormat
from pipeline.cluster.ray_cluster import ClusterSettings, NamedPath
from pipeline.decode.photo import DecodeLimits
from pipeline.decode.pictures.views import VIDEO_FRAMES
from pipeline.locate.context import ContextSettings
from pipeline.locate.locator import AtLeast
from pipeline.locate.precision import PrecisionName
from pipeline.read.fetch import FetchSettings
from pipeline.run.plan import Order
from pipeline.sources.manifest import ListSettings
from pipeline.storage.lease import LeaseSettings


@dataclass(frozen=True)
class GeotagSettings:
    """Geotag an archive: one row for every photo, published as GeoParquet."""

    photos: tuple[str, ...]
    """Folder, object prefix, photo, Parquet or CSV manifest with a column `uri`, S3 Inventory's manifest.json, .tar or
    .zip, or a pattern such as '/photos/2024-*/*.jpg'; several if you like."""
    output: str = ""
    """Folder or object prefix that holds the answers; the same one for every run over this archive."""
    model: str = "bundled"
    """Checkpoint folder, local or remote; `bundled` is the small model that ships with Graticule."""
    engine: EngineName = "auto"
    """What runs the model: auto takes torch on a GPU and openvino on a CPU."""
    engines: str | None = None
    """Folder or object prefix where machines keep compiled engines in common (onnxruntime and tensorrt), each compiled
    by one of them, or by jobs.compile_engine before. Name one that only people write to whom you trust."""
    run_id: str | None = None
    """Name of this run; its number and the time if not given."""
    precision: PrecisionName = "street"
    """Store nothing finer than this, in any column."""
    context: bool = False
    """Let photos of one folder that were taken soon after each other explain each other, in columns of their own."""
    point: PointRule = AUTO
    """Where a photo's point is: at the most probable cell, or where the photo is least far away on average."""
    at_least: AtLeast = "country"
    """A photo that is not more likely right than not to this precision is `undecided`: it keeps its distribution and
    its best guess, and gets no name of a place. `any` decides every photo."""
    include: tuple[str, ...] = ()
    """Take only photos whose name below the source matches one of these patterns, such as *.jpg or 2024/**."""
    exclude: tuple[str, ...] = ()
    """Leave out photos that match one of these."""
    videos: bool = False
    """Look at videos, too: at one frame of each, out of its first key frames. Their bytes are fetched whole."""
    video_frames: int = VIDEO_FRAMES
    """Out of so many key frames of a video the sharpest that is not dark is looked at."""
    photos_root: tuple[str, ...] = ()
    """Folders below which a manifest may name local photos, beside its own folder."""
    ignore_marks: bool = False
    """Look at folders, too, whose owners ask not to: those with a .nomedia or .noimage, and what a .ppignore names."""
    retry_failed: bool = False
    """Take photos again that failed for good (transient failures are always taken again)."""
    retag: bool = False
    """Take photos again that another model has looked at."""
    limit: int | None = None
    """Take on at most so many photos in this run."""
    max_hours: float | None = None
    """Begin no more photos after so many hours, publish those that are done, and leave the rest to the next run."""
    order: Order = "name"
    """Which photos come first, and which ones --limit takes: by name, or those changed last or first."""
    max_failed_fraction: float = 0.5
    """Exit with 3 when more than this share of the run's photos failed."""
    max_gone_fraction: float = 0.5
    """Take photos that a source lists no more for gone, unless more than this share of it is missing and was not moved:
    then its disk may be away. 1 believes every listing."""
    engine_precision: Precision = "auto"
    """What the network computes in: auto is bf16 where the machine computes in it, else fp32."""
    batch_size: int | None = None
    """Photos in one call of the engine; 32 on CPUs and 512 on GPUs if not given."""
    shared_filesystem: bool = False
    """Local paths are mounted on every node of the cluster; without this, several nodes take none."""
    max_silence_minutes: float = 30.0
    """End, with exit code 1, a run that reads, locates and stages no photo for so long; give more than one photo may
    take, or the compilation of an engine."""
    log_format: LogFormat = "text"
    """How log lines are written: text, or one JSON object a line."""
    album: ContextSettings = field(default_factory=ContextSettings)
    tensorrt: TensorRtSettings = field(default_factory=TensorRtSettings)
    lease: LeaseSettings = field(default_factory=LeaseSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def check(self) -> None:
        """Raise ValueError for what can't be meant."""
        if not self.photos:
            raise ValueError("give --photos a folder, an object prefix, or a manifest")
        if not self.output:
            raise ValueError("give --output a folder or an object prefix for the answers")
        for name, share in (
            ("--max-failed-fraction", self.max_failed_fraction),
            ("--max-gone-fraction", self.max_gone_fraction),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} {share}: give a share between 0 and 1")
        for name, value in (
            ("--limit", self.limit),
            ("--batch-size", self.batch_size),
            ("--video-frames", self.video_frames),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: give at least 1")
        if self.max_hours is not None and not self.max_hours > 0:
            raise ValueError(f"--max-hours {self.max_hours:g}: give more than 0")
        if not self.max_silence_minutes > 0:
            raise ValueError(f"--max-silence-minutes {self.max_silence_minutes:g}: give more than 0")
        if self.run_id is not None and not self.run_id.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"--run-id {self.run_id!r}: use letters, digits, - and _ only")

    @property
    def listing(self) -> ListSettings:
        """How the sources are listed."""
        return ListSettings(
            include=self.include,
            exclude=self.exclude,
            allow_http=self.fetch.allow_http,
            honours_marks=not self.ignore_marks,
            photos_root=self.photos_root,
        )

    def paths(self, output: str, model_uri: str) -> list[NamedPath]:
        """Return what the run reads and writes, of which local paths must be the same ones on every node."""
        paths = [NamedPath("--photos", storage.absolute(source)) for source in self.photos]
        paths.append(NamedPath("--output", output))
        if model_uri != "bundled":
            paths.append(NamedPath("--model", model_uri))
        if self.engines is not None:
            paths.append(NamedPath("--engines", storage.absolute(self.engines)))
        return paths
