"""Tables of photos whose position is known: what hierarchies are built from and models are trained and tested on.

A table is Parquet or CSV with columns for latitude and longitude in degrees under any of their usual names; the other
columns (`uri` or `path`, `scene`, `photographer` …) are needed only where photos are read.

Shapes: N photos.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage

LATITUDE_NAMES = ("lat_deg", "lat", "latitude", "gps_latitude")
LONGITUDE_NAMES = ("lon_deg", "lon", "lng", "long", "longitude", "gps_longitude")


def read_table(uri: str) -> pa.Table:
    """Read a Parquet or CSV table (told apart by content). Raises ValueError if it can't be read or has no rows."""
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise ValueError(f"cannot read the table {uri}: {error}") from error
    try:
        if data[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(data))
        else:
            table = pa.csv.read_csv(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{uri} is neither a readable Parquet table nor a readable CSV: {error}") from error
    if not table.num_rows:
        raise ValueError(f"{uri} has no rows")
    return table


def find_column(table: pa.Table, names: Sequence[str]) -> str | None:
    """Return the table's column that has one of the names, in any case, the first name first; None if it has none."""
    by_name = {name.lower(): name for name in reversed(table.column_names)}
    return next((by_name[name] for name in names if name in by_name), None)


def coordinates(table: pa.Table, uri: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (lat_deg_N, lon_deg_N) of a table read from `uri`.

    Raises ValueError, naming the row, for a position that is missing, no number or not on Earth.
    """
    columns = []
    for names, limit_deg in ((LATITUDE_NAMES, 90), (LONGITUDE_NAMES, 180)):
        name = find_column(table, names)
        if name is None:
            raise ValueError(
                f"{uri} has no column {' or '.join(names)}; its columns are {', '.join(table.column_names)}"
            )
        try:
            degrees_N = table[name].cast(pa.float64()).to_numpy()
        except pa.ArrowException as error:
            raise ValueError(f"column {name} of {uri} is not made of numbers: {error}") from error
        bad_N = ~(np.abs(degrees_N) <= limit_deg)
        if bad_N.any():
            row = int(np.argmax(bad_N))
            raise ValueError(
                f"column {name} of {uri} has {bad_N.sum()} values that are missing or beyond ±{limit_deg} degrees, "
                f"first {degrees_N[row]} in row {row + 1}: remove those rows"
            )
        columns.append(degrees_N)
    return columns[0], columns[1]
