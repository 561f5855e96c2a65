"""A map of one's own photos, cell by cell, as in a notebook: python jobs/examples/map_of_my_photos.py PHOTOS FOLDER"""

# %% Where the photos are, and where results go
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.geotag import geotag
from pipeline.geotag_settings import GeotagSettings
from pipeline.published.catalog import Catalog

PHOTOS, FOLDER = sys.argv[1], Path(sys.argv[2])
OUTPUT = str(FOLDER / "geotags")


def graticule(*words: object) -> None:
    """Run one of Graticule's commands, as in a shell."""
    subprocess.run(["graticule", *map(str, words)], check=True)


# %% Tag them; run this cell again whenever there are new ones
geotag(GeotagSettings(photos=(PHOTOS,), output=OUTPUT))

# %% Where cameras and model say that they were taken
catalog = Catalog(OUTPUT)
print(
    catalog.drawn(
        """
        SELECT coalesce(recorded_country, country, 'can''t tell') AS country, count(*) AS photos,
            count(recorded_lat_deg) AS by_gps
        FROM photos WHERE status <> 'failed' GROUP BY ALL ORDER BY photos DESC, country
        """,
        100,
    )
)

# %% One page with a map, which needs no network; and a file for QGIS, geojson.io and others
graticule("report", OUTPUT, "--to", FOLDER / "report.html", "--title", "My photos")
graticule("export", OUTPUT, "--format", "geojson", "--to", FOLDER / "photos.geojson", "--undecided")
print(f"open {FOLDER / 'report.html'}")
