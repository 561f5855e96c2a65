from pathlib import Path

import pytest

from training.labelled import labelled_photos


def write(folder: Path, text: str, name: str = "photos.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_every_column_is_read_and_paths_are_resolved(tmp_path: Path) -> None:
    manifest = write(
        tmp_path,
        "path,lat,lon,photographer,scene\na b.jpg,1.5,-2,ann,urban\n/abs.jpg,0,0,,\ns3://x/y.jpg,-90,180,bob,indoor\n",
    )
    photos = labelled_photos(manifest)
    assert photos.name_N == ("a b.jpg", "/abs.jpg", "s3://x/y.jpg")
    assert photos.uri_N == (f"{tmp_path}/a b.jpg", "/abs.jpg", "s3://x/y.jpg")
    assert photos.lat_deg_N.tolist() == [1.5, 0, -90]
    assert photos.lon_deg_N.tolist() == [-2, 0, 180]
    assert photos.photographer_N == ("ann", "", "bob")
    assert photos.scene_N == ("urban", None, "indoor")
    assert labelled_photos(manifest, root="/else").uri_N[0] == "/else/a b.jpg"


def test_only_takes_the_rows_of_1_and_numbers_stay_names(tmp_path: Path) -> None:
    manifest = write(tmp_path, "path,lat,lon,keep\n007,1,1,1\n008,2,2,0\n009,3,3,\n")
    assert labelled_photos(manifest, only="keep").name_N == ("007",)


def test_scenes_come_from_another_table(tmp_path: Path) -> None:
    manifest = write(tmp_path, "path,lat,lon\na,1,1\nb,2,2\n")
    scenes = write(tmp_path, "path,scene\nb,urban\nc,indoor\n", "scenes.csv")
    assert labelled_photos(manifest, scenes=scenes).scene_N == (None, "urban")
    assert labelled_photos(manifest).scene_N == (None, None)


@pytest.mark.parametrize(
    ("text", "only", "message"),
    [
        ("lat,lon\n1,1\n", "", "no column uri or path"),
        ("path,lat,lon\na,1,1\n,2,2\n", "", "row 2"),
        ("path,lat,lon\na,1,1\na,2,2\n", "", "a twice"),
        ("path,lat,lon\na,1,1\n", "keep", "no column keep"),
        ("path,lat,lon,keep\na,1,1,0\n", "keep", "no rows where keep is 1"),
        ("path,lat,lon,keep\na,1,1,perhaps\n", "keep", "does not hold 0 and 1"),
    ],
)
def test_tables_that_lack_something_are_refused(text: str, only: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_photos(write(tmp_path, text), only=only)


def test_a_scenes_table_without_scenes_is_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path, "path,lat,lon\na,1,1\n")
    with pytest.raises(ValueError, match="no column scene"):
        labelled_photos(manifest, scenes=manifest)
