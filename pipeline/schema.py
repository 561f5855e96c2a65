"""Every Arrow schema, status and error code that Graticule stores, once.

Nobody else writes a column's name as a literal: use the constants here, e.g. `schema.LAT_DEG`.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass
from typing import Self

import pyarrow as pa


class Status(enum.StrEnum):
    """What became of a photo."""

    LOCATED = "located"
    UNDECIDED = "undecided"
    SKIPPED = "skipped"
    FAILED = "failed"


COPIED = "copied"
"""Status of a row that waits in the staging: its bytes are another photo's, whose answer it will get."""


class ErrorCode(enum.StrEnum):
    """Why a photo has no place: a closed set, exactly one for each failed or skipped row."""

    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_FAILED = "fetch_failed"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_TIMEOUT = "decoder_timeout"
    MODEL_FAILED = "model_failed"
    NOT_A_PHOTO = "not_a_photo"


class Media(enum.StrEnum):
    """What kind of picture a file is."""

    IMAGE = "image"
    RAW = "raw"
    VIDEO = "video"


class RecordedBy(enum.StrEnum):
    """Where the position stands that a photo's owner or camera recorded, in the order in which they are believed."""

    EXIF = "exif"
    XMP = "xmp"
    SIDECAR = "sidecar"
    TAKEOUT = "takeout"
    VIDEO = "video"


class UtcBy(enum.StrEnum):
    """How it is known when a photo was taken, in UTC."""

    OFFSET_TIME = "offset_time"
    GPS_TIME = "gps_time"
    QUICKTIME = "quicktime"
    TAKEOUT = "takeout"
    ZONE_OF_POSITION = "zone_of_position"


TRANSIENT_ERRORS = (ErrorCode.NOT_FOUND, ErrorCode.FETCH_TIMEOUT, ErrorCode.FETCH_FAILED)
"""Failures of the moment: later runs take these photos again by themselves, later and later.

A photo that was listed and not found is one of them: what is listed exists, or will be listed no more.
"""

FETCH_ERRORS = (*TRANSIENT_ERRORS, ErrorCode.FORBIDDEN)
"""Failures to get at a photo at all, which say nothing of it: they never hide its answer (see `catalog`)."""

MAX_ERROR_MESSAGE_CHARS = 300


class PhotoError(Exception):
    """An expected failure of one photo, which becomes its row; anything else is a bug and stops the job."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = printable(message)[:MAX_ERROR_MESSAGE_CHARS]

    def __reduce__(self) -> tuple[type[PhotoError], tuple[object, ...]]:
        """Pickle by what it was made of: it travels between processes."""
        return PhotoError, (self.code, self.message)

    def without_frames(self) -> Self:
        """Return the error as a value to keep: the frames that it came through would hold the photo's bytes."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class ProblemKind(enum.StrEnum):
    """What of a source could not be looked at."""

    FOLDER = "folder"
    ARCHIVE = "archive"
    ROW = "row"


@dataclass(frozen=True)
class SourceProblem:
    """A part of a source, at `uri`, that could not be listed: the rest is done without it; each run looks again."""

    kind: str
    uri: str
    reason: str

    def __str__(self) -> str:
        """Return it as a line for people."""
        return f"{self.kind} {printable(self.uri)}: {self.reason}"


def printable(text: str) -> str:
    """Return `text` with every control or lone-surrogate character escaped: safe to print and to store as UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def photo_id(uri: str) -> bytes:
    """Return the 16 bytes that name a photo: the BLAKE2b hash of its URI."""
    return hashlib.blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# Columns of a manifest and of a run's plan.
PHOTO_ID = "photo_id"
URI = "uri"
ETAG = "etag"
SIZE_BYTES = "size_bytes"
CONTAINER_URI = "container_uri"
CONTAINER_ETAG = "container_etag"
OFFSET_BYTES = "offset_bytes"
STORED_BYTES = "stored_bytes"
MODIFIED_AT = "modified_at"
SIDECARS = "sidecars"
SIDECAR_KIND = "kind"
SIDECAR_IS_CUT = "is_cut"
SIDECAR_ETAG = "sidecar_etag"

PLACE_OF_BYTES = (URI, ETAG, SIZE_BYTES, CONTAINER_URI, CONTAINER_ETAG, OFFSET_BYTES, STORED_BYTES)
"""Columns by which a file, or an archive's member, is fetched."""

_BYTES_KINDS = dict.fromkeys((SIZE_BYTES, OFFSET_BYTES, STORED_BYTES), pa.int64())
_WHERE = [(name, _BYTES_KINDS.get(name, pa.string())) for name in PLACE_OF_BYTES]
_SIDECAR_STRUCT = pa.struct([(SIDECAR_KIND, pa.string()), (SIDECAR_IS_CUT, pa.bool_()), *_WHERE])

MANIFEST = pa.schema(
    [
        pa.field(PHOTO_ID, pa.binary(16), nullable=False),
        pa.field(URI, pa.string(), nullable=False),
        pa.field(ETAG, pa.string()),
        pa.field(SIZE_BYTES, pa.int64()),
        pa.field(CONTAINER_URI, pa.string()),
        pa.field(CONTAINER_ETAG, pa.string()),
        pa.field(OFFSET_BYTES, pa.int64()),
        pa.field(STORED_BYTES, pa.int64()),
        pa.field(MODIFIED_AT, pa.timestamp("us", "UTC")),
        pa.field(SIDECARS, pa.list_(_SIDECAR_STRUCT)),
        pa.field(SIDECAR_ETAG, pa.string()),
    ]
)
"""One row a photo as its source lists it; also a run's plan, which alone knows what stands beside a photo: `sidecars`
(see `beside.names`; the closest first; `is_cut` where the name could be another photo's) and `sidecar_etag`.

`modified_at` is when the store last wrote it (an archive's members have their archive's), null where the source doesn't
say. The four before it are null unless the photo lies inside a tar or zip (then `uri` is `container#member`): which
one, in which version, where its part begins (tar: its bytes; zip: its local header) and how many bytes the part takes
there.
"""

LIST_NAME = re.compile(
    r"\.(parquet|parq|pq|csv|tsv|tab|psv|jsonl|ndjson|json|txt|lst|list)(?:\.(?:gz|gzip|bz2|zst|zstd|xz|lz4))?$",
    re.IGNORECASE,
)
"""How files end, and folders of parts, that list photos: whatever lies anywhere may be named in one."""

# Columns of the catalogue's table of source problems, beside `run_id` and `uri`.
PROBLEM_KIND = "problem_kind"
REASON = "reason"

# Columns that the Reader adds.
CONTENT_HASH = "content_hash"
ERROR_CODE = "error_code"
ERROR_MESSAGE = "error_message"
FORMAT = "format"
MEDIA = "media"
WIDTH_PX = "width_px"
HEIGHT_PX = "height_px"
DECODE_WARNING = "decode_warning"
DECODED_SHARE = "decoded_share"
TAKEN_AT = "taken_at"
TAKEN_AT_UTC = "taken_at_utc"
TAKEN_AT_UTC_BY = "taken_at_utc_by"
RECORDED_LAT_DEG = "recorded_lat_deg"
RECORDED_LON_DEG = "recorded_lon_deg"
RECORDED_BY = "recorded_by"
RECORDED_APART_KM = "recorded_apart_km"
IPTC_CITY = "iptc_city"
IPTC_REGION = "iptc_region"
IPTC_COUNTRY = "iptc_country"
IPTC_COUNTRY_CODE = "iptc_country_code"
CAPTION = "caption"
KEYWORDS = "keywords"
PIXELS_HWC = "pixels_HWC"
FETCH_SECONDS = "fetch_seconds"
DECODE_SECONDS = "decode_seconds"

# Columns that the Locator adds.
STATUS = "status"
RECORDED_COUNTRY_CODE = "recorded_country_code"
RECORDED_COUNTRY = "recorded_country"
RECORDED_REGION = "recorded_region"
RECORDED_PLACE = "recorded_place"
LAT_DEG = "lat_deg"
LON_DEG = "lon_deg"
RADIUS_KM = "radius_km"
CONFIDENCE = "confidence"
INFORMATION_BITS = "information_bits"
LEVELS = "levels"
ALTERNATIVES = "alternatives"
LEVEL = "level"
S2_LEVEL = "s2_level"
CELL_ID = "cell_id"
CELL_TOKEN = "cell_token"
PROBABILITY = "probability"
SCENE = "scene"
SCENE_PROBABILITY = "scene_probability"
COUNTRY_CODE = "country_code"
COUNTRY = "country"
REGION = "region"
PLACE = "place"
COUNTRY_PROBABILITY = "country_probability"
COUNTRIES = "countries"
PRECISION = "precision"
GEOMETRY = "geometry"
CONTEXT_LAT_DEG = "context_lat_deg"
CONTEXT_LON_DEG = "context_lon_deg"
CONTEXT_RADIUS_KM = "context_radius_km"
CONTEXT_CONFIDENCE = "context_confidence"
CONTEXT_CELL_ID = "context_cell_id"
CONTEXT_PHOTOS = "context_photos"
MODEL_ID = "model_id"
RUN_ID = "run_id"
RUN_SEQUENCE = "run_sequence"
PROCESSED_AT = "processed_at"
READ_SECONDS = "read_seconds"

_LEVEL_STRUCT = pa.struct(
    [
        pa.field(LEVEL, pa.int8(), nullable=False),
        pa.field(S2_LEVEL, pa.int8(), nullable=False),
        pa.field(CELL_ID, pa.uint64(), nullable=False),
        pa.field(CELL_TOKEN, pa.string(), nullable=False),
        pa.field(LAT_DEG, pa.float64(), nullable=False),
        pa.field(LON_DEG, pa.float64(), nullable=False),
        pa.field(PROBABILITY, pa.float32(), nullable=False),
    ]
)
_ALTERNATIVE_STRUCT = pa.struct(
    [
        pa.field(CELL_ID, pa.uint64(), nullable=False),
        pa.field(LAT_DEG, pa.float64(), nullable=False),
        pa.field(LON_DEG, pa.float64(), nullable=False),
        pa.field(PROBABILITY, pa.float32(), nullable=False),
    ]
)
_COUNTRY_STRUCT = pa.struct(
    [
        pa.field(COUNTRY_CODE, pa.string()),
        pa.field(COUNTRY, pa.string(), nullable=False),
        pa.field(PROBABILITY, pa.float32(), nullable=False),
    ]
)
_GEOARROW = {"ARROW:extension:name": "geoarrow.wkb", "ARROW:extension:metadata": '{"crs":"OGC:CRS84"}'}


def _column(
    name: str, kind: pa.DataType, doc: str, nullable: bool = True, extension: dict[str, str] | None = None
) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc} | (extension or {}))


PHOTOS = pa.schema(
    [
        _column(PHOTO_ID, pa.binary(16), "names the photo: BLAKE2b-128 of its URI", nullable=False),
        _column(URI, pa.string(), "where the photo is", nullable=False),
        _column(ETAG, pa.string(), "the photo's version as listed: the store's ETag, or a local file's time and size"),
        _column(SIDECAR_ETAG, pa.string(), "the version of all sidecars read with the photo; null where it has none"),
        _column(SIZE_BYTES, pa.int64(), "bytes read; as listed where nothing could be read"),
        _column(CONTENT_HASH, pa.binary(16), "the first 128 bits of the BLAKE3 of the bytes read"),
        _column(
            STATUS,
            pa.string(),
            "`located`, `undecided` (looked at, and no place is more likely right than not), `skipped` or `failed`",
            nullable=False,
        ),
        _column(ERROR_CODE, pa.string(), "why it failed or was skipped, one of the error codes; else null"),
        _column(ERROR_MESSAGE, pa.string(), "the reason in words"),
        _column(FORMAT, pa.string(), "the file's format by its content, e.g. `jpeg`"),
        _column(MEDIA, pa.string(), "`image`, `raw` or `video`; null where that is unknown, as in older rows"),
        _column(WIDTH_PX, pa.int32(), "width as displayed"),
        _column(HEIGHT_PX, pa.int32(), "height as displayed"),
        _column(DECODE_WARNING, pa.string(), "what is wrong with a picture that was looked at all the same"),
        _column(DECODED_SHARE, pa.float32(), "how much of such a picture could be decoded, 0 to 1"),
        _column(TAKEN_AT, pa.timestamp("us"), "when the camera or the owner says it was taken, in local time"),
        _column(TAKEN_AT_UTC, pa.timestamp("us", tz="UTC"), "the same moment in UTC, where that is known"),
        _column(
            TAKEN_AT_UTC_BY,
            pa.string(),
            "how: `offset_time`, `gps_time`, `quicktime`, `takeout` or `zone_of_position`",
        ),
        _column(RECORDED_LAT_DEG, pa.float64(), "latitude that the camera or the owner recorded"),
        _column(RECORDED_LON_DEG, pa.float64(), "longitude that the camera or the owner recorded"),
        _column(RECORDED_BY, pa.string(), "where it stands: `exif`, `xmp`, `sidecar`, `takeout` or `video`"),
        _column(RECORDED_APART_KM, pa.float32(), "how far the farthest other recorded position is from it, if any"),
        _column(RECORDED_COUNTRY_CODE, pa.string(), "the recorded position, named as the predicted one"),
        _column(RECORDED_COUNTRY, pa.string(), "the same: country"),
        _column(RECORDED_REGION, pa.string(), "the same: region"),
        _column(RECORDED_PLACE, pa.string(), "the same: town"),
        _column(
            IPTC_CITY,
            pa.string(),
            "city that the owner wrote into the photo (IPTC, XMP), cut with `…` after 250 characters",
        ),
        _column(IPTC_REGION, pa.string(), "the same: province or state"),
        _column(IPTC_COUNTRY, pa.string(), "the same: country"),
        _column(IPTC_COUNTRY_CODE, pa.string(), "the same: country code"),
        _column(
            CAPTION,
            pa.string(),
            "what the owner wrote of the photo, in one line, cut with `…` after 10,000 characters",
        ),
        _column(
            KEYWORDS,
            pa.list_(pa.string()),
            "the owner's keywords, the first 1,000; `…` is the last where there are more",
        ),
        _column(LAT_DEG, pa.float64(), "predicted latitude; of an undecided photo, only the best guess"),
        _column(LON_DEG, pa.float64(), "predicted longitude, likewise"),
        _column(RADIUS_KM, pa.float32(), "around the point, fitted to hold the true place of nine photos of ten"),
        _column(CONFIDENCE, pa.float32(), "probability of the point's own cell, at the finest level"),
        _column(INFORMATION_BITS, pa.float32(), "how much the picture said beyond the model's prior; null without one"),
        _column(LEVELS, pa.list_(_LEVEL_STRUCT), "the best cell at every geographic level, coarse → fine"),
        _column(ALTERNATIVES, pa.list_(_ALTERNATIVE_STRUCT), "the finest level's five most probable cells"),
        _column(SCENE, pa.string(), "the kind of scene whose queries answered"),
        _column(SCENE_PROBABILITY, pa.float32(), "probability of that scene"),
        _column(
            COUNTRY_CODE,
            pa.string(),
            "the point's country, ISO 3166-1 alpha-2, if more likely right than not; null on the open sea",
        ),
        _column(
            COUNTRY, pa.string(), "its name in English, or `open sea`, which begins 12 nautical miles off the coast"
        ),
        _column(REGION, pa.string(), "state or province of the country's nearest town, as far as `precision` goes"),
        _column(PLACE, pa.string(), "the country's nearest town, or the city around it, as far as `precision` goes"),
        _column(
            COUNTRY_PROBABILITY, pa.float32(), "probability of that country: of all the finest level's cells there"
        ),
        _column(COUNTRIES, pa.list_(_COUNTRY_STRUCT), "the three most probable countries, the open sea counted as one"),
        _column(PRECISION, pa.string(), "finest of country, region, city, street that is more likely right than not"),
        _column(CELL_ID, pa.uint64(), "S2 leaf cell of the point, for joins and range scans"),
        _column(GEOMETRY, pa.binary(), "the point as WKB (GeoParquet, OGC:CRS84)", extension=_GEOARROW),
        _column(CONTEXT_LAT_DEG, pa.float64(), "latitude in the light of the folder's other photos; null without any"),
        _column(CONTEXT_LON_DEG, pa.float64(), "longitude in the light of the folder's other photos"),
        _column(CONTEXT_RADIUS_KM, pa.float32(), "around that point, holds 90 % of the probability"),
        _column(CONTEXT_CONFIDENCE, pa.float32(), "probability of that point's cell"),
        _column(CONTEXT_CELL_ID, pa.uint64(), "S2 leaf cell of that point"),
        _column(CONTEXT_PHOTOS, pa.int32(), "how many other photos were looked at with it"),
        _column(
            MODEL_ID,
            pa.string(),
            "the model that answered, by content; `+` its `--point`, if any",
            nullable=False,
        ),
        _column(RUN_ID, pa.string(), "the run that wrote the row", nullable=False),
        _column(
            RUN_SEQUENCE,
            pa.int64(),
            "the run's number, in the order in which runs were published; the newest row of a photo has the highest",
        ),
        _column(
            PROCESSED_AT, pa.timestamp("us", tz="UTC"), "when the row was made, by its worker's clock", nullable=False
        ),
        _column(READ_SECONDS, pa.float32(), "how long its fetching and decoding took, waiting for its store included"),
    ]
)
"""One row a photo: what is staged, published and queried."""

CONTEXT = (
    *(CONTEXT_LAT_DEG, CONTEXT_LON_DEG, CONTEXT_RADIUS_KM),
    *(CONTEXT_CONFIDENCE, CONTEXT_CELL_ID, CONTEXT_PHOTOS),
)
"""Columns that `--context` fills: what a photo's neighbours in its folder say of its place."""

RECORDED = (
    *(RECORDED_LAT_DEG, RECORDED_LON_DEG, RECORDED_BY, RECORDED_APART_KM),
    *(RECORDED_COUNTRY_CODE, RECORDED_COUNTRY, RECORDED_REGION, RECORDED_PLACE),
)
"""Columns of the position that the camera or the owner recorded."""

IPTC = (IPTC_CITY, IPTC_REGION, IPTC_COUNTRY, IPTC_COUNTRY_CODE, CAPTION, KEYWORDS)
"""Columns of what the owner wrote into the photo in words."""

ADDED_LATER = frozenset(
    {
        *(MEDIA, DECODE_WARNING, DECODED_SHARE, TAKEN_AT_UTC, TAKEN_AT_UTC_BY),
        *RECORDED,
        *IPTC,
        *(COUNTRY_CODE, COUNTRY, REGION, PLACE, COUNTRY_PROBABILITY, COUNTRIES),
        *CONTEXT,
        *(RUN_SEQUENCE, READ_SECONDS, INFORMATION_BITS, SIDECAR_ETAG),
    }
)
"""Columns that files of older versions lack; null stands for them there, or what `older_rows` knows."""

# Columns of the view `photos` alone.
LAST_ERROR_CODE = "last_error_code"
LAST_ERROR_MESSAGE = "last_error_message"
LAST_TRIED_AT = "last_tried_at"
GONE_SINCE = "gone_since"

LAST_TRY = pa.schema(
    [
        _column(LAST_ERROR_CODE, pa.string(), "why the photo could not be fetched since; null where it was not tried"),
        _column(LAST_ERROR_MESSAGE, pa.string(), "that reason in words"),
        _column(LAST_TRIED_AT, pa.timestamp("us", tz="UTC"), "when that was"),
    ]
)
"""What the view `photos` says, beside an answer, of a newer attempt to fetch the same version of the photo."""

GONE = pa.schema(
    [
        PHOTOS.field(PHOTO_ID),
        _column(
            GONE_SINCE,
            pa.timestamp("us", tz="UTC"),
            "when a run first found that its sources list the photo no more; null while it is here",
        ),
        PHOTOS.field(RUN_SEQUENCE),
    ]
)
"""The list of photos that are listed no more; the view `photos` says it by the column `gone_since`."""

PHOTO_SHA256 = "photo_sha256"
FORGOTTEN = pa.schema([_column(PHOTO_SHA256, pa.string(), "the SHA-256 of a forgotten photo's `photo_id`, in hex")])
"""The list of photos that are never to be looked at again: it names none, and only tells of a known one."""

READ = pa.schema(
    [
        *(PHOTOS.field(name) for name in (PHOTO_ID, URI, ETAG, SIDECAR_ETAG, SIZE_BYTES, CONTENT_HASH)),
        *(PHOTOS.field(name) for name in (ERROR_CODE, ERROR_MESSAGE)),
        *(PHOTOS.field(name) for name in (FORMAT, MEDIA, WIDTH_PX, HEIGHT_PX, DECODE_WARNING, DECODED_SHARE)),
        *(PHOTOS.field(name) for name in (TAKEN_AT, TAKEN_AT_UTC, TAKEN_AT_UTC_BY, *RECORDED[:4], *IPTC)),
        pa.field(PIXELS_HWC, pa.binary()),
        *(pa.field(name, pa.float32()) for name in (FETCH_SECONDS, DECODE_SECONDS)),
    ]
)
"""What the Reader hands to the Locator: pixels at model size, or an error code; and how long each step took."""

SOURCE_PROBLEMS = pa.schema(
    [
        _column(RUN_ID, pa.string(), "the run that met it", nullable=False),
        _column(PROBLEM_KIND, pa.string(), "`folder`, `archive` or `row` (of a manifest)", nullable=False),
        _column(URI, pa.string(), "the folder, archive or manifest", nullable=False),
        _column(REASON, pa.string(), "why it, or a part of it, could not be listed", nullable=False),
    ]
)
"""One row for each part of a source that a run could not list: what it was, where, and why."""

# Columns of a table of photos to train on.
PHOTOGRAPHER = "photographer"
PART = "part"
GROUP = "group"

TRAINING = pa.schema(
    [
        _column(URI, pa.string(), "where the photo is", nullable=False),
        _column(LAT_DEG, pa.float64(), "latitude where it was taken", nullable=False),
        _column(LON_DEG, pa.float64(), "longitude where it was taken", nullable=False),
        _column(PHOTOGRAPHER, pa.string(), "who took it; null where unknown"),
        _column(SCENE, pa.string(), "the kind of scene; null where unknown"),
        _column(PART, pa.string(), "`train`, `validation` or `test`", nullable=False),
        _column(GROUP, pa.int64(), "photos linked by place and photographer have the same number", nullable=False),
    ]
)
"""One row a photo whose position is known: jobs.build_training_manifest writes, training.data.labelled reads it."""
