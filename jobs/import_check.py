"""Whether a model finds a handful of photos whose place is known: what `jobs.import_model --check` prints.

Shapes: N photos.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.checkpoint import Checkpoint
from model.engines import EngineName, Precision
from model.readout import AUTO
from model.world.geodesy import haversine_km
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import Locator, LocatorSettings, model_folder
from pipeline.read.reader import IsolatedReader, ReaderSettings
from pipeline.schema import printable
from pipeline.sources.manifest import read_manifest
from training.data.labelled import LabelledPhotos, labelled_photos

_AT_ONCE = 8
_TABLES = (".csv", ".parquet")
_THRESHOLDS_KM = (1, 25, 200, 750, 2500)
_FAR_APART_KM = 500.0
_LESS_THAN = 0.5
"""A model that finds anything is nearer to its photos than to half as far as each is from the others' answers."""


def check(
    model: str, photos: str, root: str, most: int, engine: EngineName, precision: Precision, threads: int | None
) -> int:
    """Locate some photos and print how far off each is; return the exit code: 3 if the model does not tell them apart.

    Raises ValueError for a model that can't be had, and where there are no photos with a known place.
    """
    if most < 2:
        raise ValueError(f"--most {most}: give 2 or more")
    uri = model if model == "bundled" else storage.absolute(model)
    checkpoint = Checkpoint.load(model_folder(uri)).pointing(AUTO)
    reader = IsolatedReader(ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)))
    try:
        read = _read(reader, photos, root, most)
    finally:
        reader.close()
    begun_s = time.perf_counter()
    settings = LocatorSettings(
        model_uri=uri,
        model_id=checkpoint.model_id,
        run_id="check",
        engine=engine,
        engine_precision=precision,
        threads=threads,
        batch_size=_AT_ONCE,
        engine_cache=storage.cache_folder() / "engines",
    )
    locator = Locator(settings)
    start_s = time.perf_counter() - begun_s
    rows = locator(read)
    rows = rows.filter(pc.is_valid(rows[schema.LAT_DEG]))
    if not rows.num_rows:
        raise ValueError(
            f"{checkpoint.model_id} gave numbers that are not finite for every photo: its weights are broken"
        )
    use = locator.take_use()
    print(
        f"{checkpoint.model_id}, {rows.num_rows} photos whose place is known; engine {locator.engine.name}"
        f" {locator.engine.precision}: {sum(use.call_seconds) / use.photos:.3f} s a photo, {start_s:.0f} s to start,"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of memory at most"
    )
    return _report(rows)


def _read(reader: IsolatedReader, photos: str, root: str, most: int) -> pa.Table:
    """Return rows of `schema.READ`, with pixels, and the place where it is known."""
    is_table = photos.lower().endswith(_TABLES)
    known = labelled_photos(photos, root) if is_table else None
    parts: list[pa.Table] = []
    seen = count = 0
    for plan in _drawn(photos, known):
        read = reader(plan)
        if known is not None:
            read = _with_places(read, known)
        read = read.filter(pc.and_(pc.is_valid(read[schema.RECORDED_LAT_DEG]), pc.is_valid(read[schema.PIXELS_HWC])))
        parts, seen, count = [*parts, read], seen + plan.num_rows, count + read.num_rows
        if count >= most:
            break
    if count < 2:
        raise ValueError(
            f"{photos} has {count} readable photos whose place is known, of {seen}: give a table with uri, lat and"
            " lon, with --root if its files lie elsewhere, or photos whose cameras wrote it"
        )
    return pa.concat_tables(parts).slice(0, most)


def _drawn(photos: str, known: LabelledPhotos | None) -> Iterator[pa.Table]:
    """Yield rows of `schema.MANIFEST`, a few at a time, in an order that is random and the same each time."""
    if known is None:
        listed = pa.Table.from_batches(list(read_manifest(storage.absolute(photos))), schema=schema.MANIFEST)
    else:
        uris = [storage.canonical(uri) for uri in known.uri_N]
        rows = [{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri} for uri in uris]
        listed = pa.Table.from_pylist(rows, schema=schema.MANIFEST)
    order = np.random.default_rng(0).permutation(listed.num_rows)
    for start in range(0, len(order), _AT_ONCE):
        yield listed.take(pa.array(order[start : start + _AT_ONCE]))


def _with_places(read: pa.Table, known: LabelledPhotos) -> pa.Table:
    """The same rows with the table's positions in the place of the cameras'."""
    row_of = {storage.canonical(uri): row for row, uri in enumerate(known.uri_N)}
    rows = [row_of[uri] for uri in read[schema.URI].to_pylist()]
    for name, degrees_N in ((schema.RECORDED_LAT_DEG, known.lat_deg_N), (schema.RECORDED_LON_DEG, known.lon_deg_N)):
        read = read.set_column(read.schema.get_field_index(name), name, pa.array(degrees_N[rows]))
    return read


def _report(rows: pa.Table) -> int:
    said = rows[schema.LAT_DEG].to_numpy(), rows[schema.LON_DEG].to_numpy()
    true = rows[schema.RECORDED_LAT_DEG].to_numpy(), rows[schema.RECORDED_LON_DEG].to_numpy()
    off_km_N = haversine_km(*said, *true)
    names = [printable(uri.rpartition("/")[2])[:40] for uri in rows[schema.URI].to_pylist()]
    columns = (schema.RADIUS_KM, schema.PRECISION, schema.COUNTRY, schema.RECORDED_COUNTRY)
    for row in np.argsort(off_km_N, kind="stable").tolist():
        radius_km, precision, country, recorded_country = (rows[column][row].as_py() for column in columns)
        sure = f"{precision} {country or ''}".strip() if precision else "can't tell"
        print(
            f"{names[row]:<40} {off_km_N[row]:>9,.1f} km off, within {radius_km:>6,.0f} km: {sure} ({recorded_country})"
        )
    within = ", ".join(f"{int((off_km_N <= km).sum())} within {km}" for km in _THRESHOLDS_KM)
    print(f"of {len(off_km_N)}: {within} km; median {np.median(off_km_N):,.0f} km off")
    return _verdict(float(np.median(off_km_N)), said, true)


def _verdict(median_km: float, said: tuple[NDArray[np.float64], ...], true: tuple[NDArray[np.float64], ...]) -> int:
    """Compare with the same answers dealt to each other photo: what a model that sees nothing would be off by."""
    others = ~np.eye(len(said[0]), dtype=bool)
    true_km = haversine_km(true[0][:, None], true[1][:, None], *true)[others]
    if np.median(true_km) < _FAR_APART_KM:
        print(f"These photos are only {np.median(true_km):,.0f} km from each other (median): take some from far apart.")
        return 0
    dealt_km = float(np.median(haversine_km(said[0][:, None], said[1][:, None], *true)[others]))
    print(f"the same answers, each for the other photos: median {dealt_km:,.0f} km off")
    if median_km < _LESS_THAN * dealt_km:
        print("It tells these photos apart.")
        return 0
    print("It does not tell these photos apart: do not use it. If it is imported, its tower may be another one's.")
    return 3
