from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.geodecoder import SCENES_3, SCENES_16
from tests.conftest import SHARED
from training.data.labelled import labelled_photos

TRUTH = SHARED / "data" / "tables" / "truth"
IM2GPS = """IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label,S365_Label,Prob_indoor
10_a_7@N00.jpg,0078841376,32.325436,-64.764404,2,12,353,0.27
11_b_8@N00.jpg,78841377@N00,-16.5,145,0,,325,0.41
"""
YFCC4K = '''RecordNumber,name,Secret,OwnerNSID,Username,Title,EmptyField,lon,lat,Accuracy
1,10201275523.jpg,6a,55289779@N00,booledozer,"a, ""b""",,-79.365637,43.649708,16
3,7289030198.jpg,b5,53430201@N03,sara,c,,-73.985495,40.740067,15
'''


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
    assert photos.part_N == (None, None, None)
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
        ("path,lat,lon,part\na,1,1,train\nb,1,1,dev\n", "", "part of .* has 'dev': write train, validation, test"),
    ],
)
def test_tables_that_lack_something_are_refused(text: str, only: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_photos(write(tmp_path, text), only=only)


def test_a_scenes_table_without_scenes_is_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path, "path,lat,lon\na,1,1\n")
    with pytest.raises(ValueError, match="no column scene"):
        labelled_photos(manifest, scenes=manifest)


def test_the_layout_of_im2gps_and_mp16_is_read_as_it_is(tmp_path: Path) -> None:
    manifest = write(tmp_path, IM2GPS)
    photos = labelled_photos(manifest, root="s3://bucket/images", vocabulary=SCENES_16)
    assert photos.name_N == ("10_a_7@N00.jpg", "11_b_8@N00.jpg")
    assert photos.uri_N[0] == "s3://bucket/images/10_a_7@N00.jpg"
    assert photos.photographer_N == ("0078841376", "78841377@N00")
    assert photos.lat_deg_N.tolist() == [32.325436, -16.5]
    assert photos.lon_deg_N.tolist() == [-64.764404, 145]
    assert photos.scene_N == ("sports fields, parks, leisure", None)
    assert labelled_photos(manifest, vocabulary=SCENES_3).scene_N == ("urban", "indoor")
    assert labelled_photos(manifest).scene_N == (None, None)
    # Sixteen other scenes are not what the table numbers.
    assert labelled_photos(manifest, vocabulary=tuple(map(str, range(16)))).scene_N == (None, None)


def test_the_layout_of_yfcc4k_is_read_as_it_is(tmp_path: Path) -> None:
    photos = labelled_photos(write(tmp_path, YFCC4K), vocabulary=SCENES_16)
    assert photos.name_N == ("10201275523.jpg", "7289030198.jpg")
    assert photos.photographer_N == ("55289779@N00", "53430201@N03")
    assert (photos.lat_deg_N[0], photos.lon_deg_N[0]) == (43.649708, -79.365637)


@pytest.mark.skipif(not TRUTH.is_dir(), reason=f"the published tables are not at {TRUTH}")
def test_the_published_tables_are_read_whole() -> None:
    counts = {"im2gps_places365.csv": 237, "im2gps3k_places365.csv": 2997, "yfcc4k.csv": 4536}
    for name, count in counts.items():
        photos = labelled_photos(str(TRUTH / name), vocabulary=SCENES_16)
        assert len(photos) == count
        assert all(photos.photographer_N)
        assert set(photos.scene_N) <= ({None} if name == "yfcc4k.csv" else set(SCENES_16))


def test_names_of_scenes_come_before_numbers_and_numbers_from_another_table(tmp_path: Path) -> None:
    named = write(tmp_path, "path,lat,lon,scene,S16_Label\na,1,1,moon,3\n")
    assert labelled_photos(named, vocabulary=SCENES_16).scene_N == ("moon",)
    plain = write(tmp_path, "path,lat,lon\na,1,1\nb,1,1\n", "plain.csv")
    numbers = write(tmp_path, "IMG_ID,S16_Label\nb,6\n", "numbers.csv")
    assert labelled_photos(plain, scenes=numbers, vocabulary=SCENES_16).scene_N == (None, "water, ice, snow")


@pytest.mark.parametrize("number", ["16", "-1", "1.5", "urban"])
def test_numbers_of_no_scene_are_refused(number: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="S16_Label"):
        labelled_photos(write(tmp_path, f"path,lat,lon,S16_Label\na,1,1,{number}\n"), vocabulary=SCENES_16)


def test_parts_are_read_and_their_usual_names_understood(tmp_path: Path) -> None:
    manifest = write(tmp_path, "path,lat,lon,Part\na,1,1,train\nb,1,1,val\nc,1,1,valid\nd,1,1,test\ne,1,1,\n")
    assert labelled_photos(manifest).part_N == ("train", "validation", "validation", "test", None)


def test_the_first_rows_do_not_decide_what_later_ones_may_be(tmp_path: Path) -> None:
    """Arrow tells a column's type by the first megabyte."""
    rows = [f"{k}.jpg,{k % 90},1,,{'x' * 100}" for k in range(20_000)]
    manifest = write(tmp_path, "path,lat,lon,note,long\n" + "\n".join(rows) + "\nlast.jpg,1.5,2.5,words,x\n")
    photos = labelled_photos(manifest)
    assert len(photos) == 20_001
    assert (photos.lat_deg_N[-1], photos.lon_deg_N[-1]) == (1.5, 2.5)


def test_parquet_is_read_too(tmp_path: Path) -> None:
    table = pa.table({"uri": ["/a", "/b"], "lat_deg": [1.0, 2.0], "lon_deg": [3.0, 4.0], "S3_Label": [2, 0]})
    pq.write_table(table, tmp_path / "photos.parquet")
    photos = labelled_photos(str(tmp_path / "photos.parquet"), vocabulary=SCENES_3)
    assert photos.uri_N == ("/a", "/b")
    assert photos.scene_N == ("urban", "indoor")
