"""Count where photos are taken, as the prior of a model: what to believe of a photo's place before it is looked at.

python -m jobs.build_prior --source positions.csv --output prior.parquet
python -m jobs.build_prior --source s3://archive/geotags --output s3://archive/prior.parquet
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs import run_command
from model.world.prior import Prior
from pipeline import storage
from training.data.geotagged import read_geotagged

WORLD, NONE = "world", "none"
FEWEST_PHOTOS = 1000
"""From fewer, the prior of the world says more."""


@dataclass(frozen=True)
class Settings:
    """Count where photos are taken, as the prior of a model."""

    source: str
    """A table with latitude and longitude in degrees, or the --output of jobs.geotag_archive, whose photos' own
    recorded positions are counted: a path or URI."""
    output: str
    """The file to write, NAME.parquet: a path or URI."""
    licence: str = ""
    """Under which licence the positions are, and by whom: kept in the file."""


def run(settings: Settings) -> int:
    """Count and write; return the exit code."""
    if not settings.output.endswith(".parquet"):
        raise ValueError(f"--output {settings.output}: give a name that ends in .parquet")
    photos = read_geotagged(settings.source)
    lat_deg_N, lon_deg_N = photos.lat_deg_N, photos.lon_deg_N
    known_N = (photos.drop_N == "") & (np.abs(lat_deg_N) <= 90) & (np.abs(lon_deg_N) <= 180)
    if known_N.sum() < FEWEST_PHOTOS:
        raise ValueError(
            f"{settings.source} has {known_N.sum()} photos with a position, and it takes {FEWEST_PHOTOS} to say more"
            " than the prior of the world does: use --prior world"
        )
    name = settings.source.rstrip("/").rpartition("/")[2]
    about = {"source": name, "licence": settings.licence} if settings.licence else {"source": name}
    prior = Prior.of(lat_deg_N[known_N], lon_deg_N[known_N], **about)
    storage.write_bytes(storage.absolute(settings.output), prior.to_bytes())
    print(f"{settings.output}: {prior.photos} photos in {len(prior.cell_id_M)} cells of some 4 km")
    return 0


def read_prior(name: str) -> Prior | None:
    """Return the prior that a flag names: `world`, `none`, or a file that this job wrote."""
    if name == WORLD:
        return Prior.world()
    if name == NONE:
        return None
    uri = storage.absolute(name)
    try:
        return Prior.from_bytes(storage.read_bytes(uri), name)
    except OSError as error:
        raise ValueError(
            f"--prior {name}: can't be read ({error}): give world, none, or a file of jobs.build_prior"
        ) from error


if __name__ == "__main__":
    run_command(Settings, run)
