"""What is no photo is told by its first bytes, with its name as a hint; what may be one is never skipped."""

from __future__ import annotations

import io
import pickle
import plistlib
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.decode.kinds import Group, KindError, ending_of, group_of, is_named_otherwise, refuse_others
from pipeline.schema import ErrorCode, PhotoError
from tests.support.photo_samples import china_image, in_every_format

FILES = in_every_format(china_image())
XMP = b'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200)


def verdict(head: bytes, name: str, with_videos: bool = False) -> tuple[str, str | None] | None:
    """Return code and format of the refusal; None where the decoder is to look at the file."""
    try:
        refuse_others(head, f"/photos/{name}", with_videos)
    except KindError as error:
        return str(error.code), error.format
    except PhotoError as error:
        return str(error.code), None
    return None


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "a")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    return buffer.getvalue()


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "a.db") as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS a (b)")
    return (folder / "a.db").read_bytes()


OTHERS: list[tuple[str, bytes, str]] = [
    ("IMG_1.xmp", XMP, "xmp"),
    ("IMG_1.JPG.xmp", b"\xef\xbb\xbf" + XMP, "xmp"),
    ("IMG_1.XMP", b"<?xml version='1.0'?>\n<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", "xmp"),
    ("IMG_1.aae", plistlib.dumps({"adjustmentBaseVersion": 0}), "aae"),
    ("IMG_1.aae", plistlib.dumps({"a": 0}, fmt=plistlib.FMT_BINARY), "aae"),
    ("IMG_1.CR2.pp3", b"[Version]\nAppVersion=5.9\n", "pp3"),
    ("IMG_1.CR2.dop", b"Sidecar = {\nDate = 1\n}", "dop"),
    ("IMG_1.cos", b"<?xml version='1.0'?><SL></SL>", "cos"),
    ("IMG_1.jpg.json", b'{"title": "IMG_1.jpg"}', "json"),
    ("IMG_1.jpg.supplemental-metada.json", "{\n".encode("utf-16"), "json"),
    ("noending", b'{"a": 1}', "json"),
    ("archive_browser.html", b"<html></html>", "html"),
    ("list.csv", b"uri,etag\na,b\n", "csv"),
    ("list.csv", "Straße;Größe\n".encode("cp1252") * 9, "csv"),
    ("notes.txt", "Grüße aus Köln".encode("utf-16"), "text"),
    ("BMW.txt", b"BMW cars of 1999 and what they cost", "text"),
    ("II.txt", b"II. The second chapter", "text"),
    ("README", b"Read me first.\n", "text"),
    ("Picasa.ini", b"[a.jpg]\nfaces=1\n", "settings"),
    ("desktop.ini", "[.ShellClassInfo]".encode("utf-16"), "settings"),
    (".DS_Store", b"\0\0\0\1Bud1" + bytes(100), "ds_store"),
    ("Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "thumbs_db"),
    ("._IMG_1.JPG", b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(50), "appledouble"),
    ("a.zip#__MACOSX/._IMG_1.JPG", b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(50), "appledouble"),
    ("report.pdf", b"%PDF-1.7\n", "pdf"),
    ("drawing.ai", b"%PDF-1.5\n", "illustrator"),
    ("letter.docx", zipped(), "office"),
    ("letter.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "office"),
    ("logo.svg", b"<?xml version='1.0'?><svg></svg>", "svg"),
    ("favicon.ico", b"\0\0\1\0\1\0\x10\x10" + bytes(50), "icon"),
    ("IMG_1.MP4", MP4, "mp4"),
    ("IMG_1.MOV", b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(9), "mov"),
    ("old.mov", b"\0\0\x10\0moov\0\0\0\x6cmvhd", "mov"),
    ("noending", MP4, "mp4"),
    ("clip.3gp", b"\0\0\0\x18ftyp3gp4\0\0\0\0isom3gp4" + bytes(9), "3gp"),
    ("clip.avi", b"RIFF\0\0\1\0AVI LIST" + bytes(50), "avi"),
    ("clip.mkv", b"\x1a\x45\xdf\xa3" + bytes(50), "matroska"),
    ("clip.webm", b"\x1a\x45\xdf\xa3" + bytes(50), "webm"),
    ("00001.MTS", (bytes(4) + b"G" + bytes(187)) * 9, "mpegts"),
    ("clip.wmv", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(50), "asf"),
    ("memo.m4a", b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42isom", "m4a"),
    ("song.mp3", b"ID3\3\0\0\0\0\0\x7fAPIC\0\0\0\x70\0\0\0image/jpeg\0\3\0\xff\xd8\xff\xe0" + bytes(50), "mp3"),
    ("song.mp3", b"\xff\xfb\x90\x64" + bytes(400), "mp3"),
    ("sound.wav", b"RIFF\0\0\1\0WAVEfmt " + bytes(50), "wav"),
    ("a.zip", zipped(), "zip"),
    ("a.tar", tarred(), "tar"),
    ("photo.jpg.gz", b"\x1f\x8b\x08" + bytes(50), "gzip"),
    ("setup.exe", b"MZ" + bytes(58) + b"\x80\0\0\0" + bytes(90), "exe"),
    ("font.ttf", b"\0\1\0\0\0\x0f\0\x80\0\3" + bytes(50), "ttf"),
    ("list.m3u", b"#EXTM3U\n/a.mp3\n", "playlist"),
    ("film.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n", "subtitles"),
    (".nomedia", b"", "marker"),
    (".gitignore", b"*.pyc\n", "settings"),
    ("empty.json", b"", "json"),
    ("db.lrcat-wal", bytes(range(256)) * 3, "sqlite"),
    ("previews.lrprev", b"AgHg" + bytes(90), "sqlite"),
]


@pytest.mark.parametrize(("name", "head", "format_name"), OTHERS, ids=[each[0] for each in OTHERS])
def test_what_is_no_photo_is_skipped_as_what_it_is(name: str, head: bytes, format_name: str) -> None:
    assert verdict(head, name) == ("not_a_photo", format_name)
    assert verdict(head[:65_536], name) == ("not_a_photo", format_name)


def test_a_database_is_one_by_any_name(tmp_path: Path) -> None:
    for name in ("Lightroom Catalog.lrcat", "library.photosdb", "noending"):
        assert verdict(database(tmp_path), name) == ("not_a_photo", "sqlite")


@pytest.mark.parametrize("format_name", FILES)
@pytest.mark.parametrize(
    "name", ["data.json", "a.mp4", "noending", ".hidden", "a.xmp", "x.unknown", "._a.jpg", "a.lrcat"]
)
def test_a_photo_is_looked_at_by_any_name(format_name: str, name: str) -> None:
    assert verdict(FILES[format_name], name) is None
    if FILES[format_name][:1] != b"\0":  # which is a blank itself
        assert verdict(b"\r\n" + FILES[format_name], name) is None


@pytest.mark.parametrize(
    "head",
    [
        b"8BPS\0\1" + bytes(30),
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30),
        b"\xff\x0a" + bytes(30),
        b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30),
        b"II*\0\x10\0\0\0CR\2\0" + bytes(30),
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(30),
        b"FUJIFILMCCD-RAW 0201" + bytes(30),
        b"IIRO\x08\0\0\0" + bytes(30),
        b"II\x1a\0\0\0HEAPCCDR" + bytes(30),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.bin", "a.json", "noending"])
def test_a_picture_of_another_format_is_never_skipped(head: bytes, name: str) -> None:
    assert verdict(head, name) is None


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"This is text.\n", "text"),
        (b"<!DOCTYPE html><html>Not found</html>", "an HTML page"),
        (XMP, "XMP"),
        (MP4, "a video (mp4)"),
        (zipped(), "an archive (zip)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("name", ["photo.jpg", "PHOTO.HEIC", "a b.Tiff"])
def test_what_its_name_says_to_be_a_photo_fails_and_the_words_say_what_it_is(head: bytes, said: str, name: str) -> None:
    with pytest.raises(KindError, match="its name ends in") as caught:
        refuse_others(head, name)
    assert caught.value.code == ErrorCode.UNSUPPORTED_FORMAT
    assert said in caught.value.message
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.format == caught.value.format


def test_what_nobody_can_tell_is_left_to_the_decoder_which_refuses_it() -> None:
    junk = bytes(range(256)) * 4
    for name in ("x.jpg", "x.unknown", "noending"):
        assert verdict(junk, name) is None
        assert verdict(bytes(5000), name) is None


def test_an_empty_file_is_a_failure_unless_its_name_says_something_else() -> None:
    assert verdict(b"", "a.jpg") == ("empty", None)
    assert verdict(b"", "noending") == ("empty", None)
    assert verdict(b"", "a.xmp") == ("not_a_photo", "xmp")


def test_videos_pass_where_they_are_asked_for() -> None:
    assert verdict(MP4, "a.mp4", with_videos=True) is None
    assert verdict(XMP, "a.xmp", with_videos=True) == ("not_a_photo", "xmp")


def test_a_placeholder_of_a_cloud_is_a_failure_that_says_what_to_do() -> None:
    head = plistlib.dumps({"NSURLNameKey": "IMG_1.HEIC"}, fmt=plistlib.FMT_BINARY)
    assert verdict(head, ".IMG_1.HEIC.icloud") == ("unsupported_format", "plist")


def test_no_byte_of_a_file_is_in_a_message() -> None:
    secret = b"TopSecretWord " * 20
    for name in ("a.jpg", "a.txt"):
        with pytest.raises(KindError) as caught:
            refuse_others(secret, name)
        assert "Secret" not in caught.value.message


def test_groups_and_endings_are_what_summaries_count_by() -> None:
    assert group_of("xmp") == Group.SIDECAR
    assert group_of("mp4") == Group.VIDEO
    assert group_of(None) == group_of("never heard of") == Group.OTHER
    assert ending_of("/a/IMG.JPG.XMP") == ".xmp"
    assert ending_of("s3://b/Thumbs.db") == ".db"
    assert ending_of("/a/b.c/noending") == ending_of("/a/.hidden") == ending_of("/a/odd.e\0nd") == ""
    assert is_named_otherwise("s3://b/a.mp4")
    assert not is_named_otherwise("s3://b/a.jpg")
    assert not is_named_otherwise("s3://b/a")
