"""Tag a folder from Python, and print a line a photo: python jobs/examples/tag_a_folder.py PHOTOS OUTPUT"""

from __future__ import annotations

import sys

from pipeline.geotag import geotag
from pipeline.geotag_settings import GeotagSettings
from pipeline.published.catalog import Catalog

QUERY = """
SELECT parse_filename(uri) AS photo, status, coalesce(error_code, place, region, country, 'can''t tell') AS answer
FROM photos WHERE status <> 'skipped' ORDER BY photo
"""


def main(photos: str, output: str) -> None:
    """Tag what is new in `photos`, and print what the output says of all of it."""
    outcome = geotag(GeotagSettings(photos=(photos,), output=output))
    if outcome.record is None:
        print("nothing is new")
    for row in Catalog(output).rows(QUERY).to_pylist():
        print(f"{row['photo']}: {row['answer']}" + (" (failed)" if row["status"] == "failed" else ""))


if __name__ == "__main__":
    main(*sys.argv[1:])
