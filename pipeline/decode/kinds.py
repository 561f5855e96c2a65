"""What a listed file is, where it is no photo: by its first bytes, with its name as a hint.

People's folders hold sidecars, databases and videos beside their photos. These are told here, so that they are skipped
and do not count as failures. The rule is on the safe side:

- What begins as a picture is never skipped, whatever its name says, nor is a picture that nothing here can decode.
- What its name says to be a photo is never skipped, whatever it holds: it is a failure, and the words say what it is.
- Else the content decides; where that says nothing, a name that is known to be of something else does.
- What neither content nor name tells is a failure: nobody can say that it is no photo.

A short table of our own, as there are far too many kinds: only those that lie beside photos are told. Nothing but the
first 64 KiB is looked at, and no codec or parser is asked.
"""

from __future__ import annotations

import codecs
import enum
import re
from dataclasses import dataclass

from pipeline.decode.header import sniff_format
from pipeline.decode.pictures.video import VIDEO_FORMATS, video_format
from pipeline.schema import ErrorCode, PhotoError


class Group(enum.StrEnum):
    """How summaries gather what was skipped, in the plural."""

    SIDECAR = "sidecars"
    VIDEO = "videos"
    SOUND = "sound files"
    DOCUMENT = "documents"
    DRAWING = "drawings"
    DATABASE = "databases"
    ARCHIVE = "archives"
    FONT = "fonts"
    PROGRAM = "programs"
    OTHER = "other files"


_FORMATS: dict[Group, str] = {
    Group.SIDECAR: "xmp json aae pp3 dop cos cop nksc on1 arp vrd spd appledouble",
    Group.VIDEO: "mp4 mov 3gp matroska webm avi asf flv mpeg mpegts ogv realmedia mxf braw dv h264",
    Group.SOUND: "mp3 m4a wav aiff flac ogg wma amr midi caf aac ape wavpack",
    Group.DOCUMENT: "pdf postscript rtf office html csv xml text markdown playlist subtitles mail",
    Group.DRAWING: "svg icon metafile illustrator indesign model3d",
    Group.DATABASE: "sqlite ds_store thumbs_db plist access settings index",
    Group.ARCHIVE: "zip 7z rar gzip bzip2 xz zstd tar cab iso lha compress lz4",
    Group.FONT: "ttf otf woff",
    Group.PROGRAM: "exe elf macho class wasm shortcut script",
    Group.OTHER: "marker checksum log data empty",
}
_GROUP_OF = {name: group for group, names in _FORMATS.items() for name in names.split()}

_PHOTO_NAMES = (
    "jpg jpeg jpe jfif jif jps mpo insp png apng mng gif bmp dib rle webp tif tiff heic heif hif avif avifs jxl jp2 j2k"
    " jpx jpf jpm j2c jpc jxr wdp hdp cr2 cr3 crw nef nrw arw sr2 srf dng raf orf ori rw2 rwl pef srw x3f 3fr fff iiq"
    " mrw erf kdc dcr dcs mef mos raw gpr psd psb xcf kra tga pcx pnm pbm pgm ppm pam xbm xpm exr hdr dds qoi bpg fpx"
    " dcm fits jpg_original thm"
)
_PHOTO_ENDINGS = frozenset(_PHOTO_NAMES.split())
_ENDINGS_OF: dict[str, str] = {
    "mp4": "mp4 mp m4v lrv insv mp4v f4v 360",
    "mov": "mov qt",
    "3gp": "3gp 3g2 3gpp",
    "matroska": "mkv mk3d",
    "mpeg": "mpg mpeg mpe mpv m2v vob mod",
    "mpegts": "mts m2ts m2t tod",
    "script": "ts sh bat cmd ps1 py js css rb pl vbs jsx c h cpp java go rs sql ipynb",
    "ogv": "ogv ogm",
    "realmedia": "rm rmvb",
    "asf": "wmv asf",
    "m4a": "m4a m4b m4p m4r",
    "aiff": "aif aiff aifc",
    "ogg": "ogg oga opus spx",
    "midi": "mid midi",
    "wavpack": "wv",
    "postscript": "ps eps",
    "office": (
        "doc docx docm dot xls xlsx xlsm ppt pptx pps ppsx odt ods odp pages numbers key epub mobi azw3 "
        "djvu one vsd pub mpp gdoc gsheet gslides"
    ),
    "html": "htm html xhtml mht mhtml php",
    "csv": "csv tsv",
    "xml": "xml gpx kml tcx rss opml",
    "text": "txt text nfo tex bib",
    "markdown": "md markdown rst",
    "playlist": "m3u m3u8 pls wpl xspf",
    "subtitles": "srt vtt sub ass ssa sbv",
    "mail": "eml msg mbox vcf ics",
    "svg": "svg svgz",
    "icon": "ico icns cur ani",
    "metafile": "wmf emf",
    "illustrator": "ai cdr afdesign afphoto afpub sketch fig",
    "indesign": "indd idml qxd",
    "model3d": "stl obj glb gltf blend fbx 3ds dwg dxf skp ply",
    "sqlite": (
        "sqlite sqlite3 db db3 lrcat lrdata lrprev photoslibrary cocatalog db-wal db-shm db-journal "
        "lrcat-data lrcat-wal lrcat-shm sqlite-wal sqlite-shm"
    ),
    "access": "mdb accdb",
    "settings": (
        "ini cfg conf inf info yaml yml toml properties lrtemplate lrsmcol rc env picasa acr lut cube icc icm"
    ),
    "index": "idx index cache pmp ithmb lock lck lrprev-journal nomedia part crdownload",
    "zip": "zip jar apk ipa war xpi cbz kmz",
    "rar": "rar cbr",
    "iso": "iso dmg img vhd vmdk",
    "gzip": "gz tgz",
    "bzip2": "bz2 tbz tbz2",
    "xz": "xz txz",
    "zstd": "zst tzst",
    "lha": "lha lzh",
    "compress": "z",
    "ttf": "ttf ttc",
    "woff": "woff woff2 eot",
    "exe": "exe dll msi sys scr com ocx",
    "elf": "so o a",
    "macho": "dylib",
    "class": "class pyc",
    "shortcut": "lnk url webloc desktop",
    "checksum": "md5 sha1 sha256 sfv par2 crc sig asc pgp gpg",
    "data": "dat bin parquet npy npz pkl h5 onnx pt pth safetensors arrow feather avro orc bup ifo",
}
_OWN_NAMES = (
    "xmp json aae pp3 dop cos cop nksc on1 arp vrd spd webm avi flv mxf braw dv h264 mp3 wav flac "
    "wma amr caf aac ape pdf rtf plist 7z tar cab lz4 otf wasm log"
)
"""Formats whose one ending is their name."""
_ENDINGS = {ending: name for name, endings in _ENDINGS_OF.items() for ending in endings.split()} | {
    name: name for name in _OWN_NAMES.split()
}
_NAMES: dict[str, str] = {
    **dict.fromkeys((".ds_store", "._.ds_store"), "ds_store"),
    **dict.fromkeys(("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "zbthumbnail.info"), "thumbs_db"),
    **dict.fromkeys(("picasa.ini", ".picasa.ini", "desktop.ini", "folder.ini"), "settings"),
    **dict.fromkeys(
        (
            ".nomedia",
            ".noimage",
            ".ppignore",
            ".gitkeep",
            ".keep",
            ".localized",
            ".graticuleignore",
            ".metadata_never_index",
        ),
        "marker",
    ),
}
_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\0\5\x16\7", "appledouble"),
    (0, b"\0\5\x16\0", "appledouble"),
    (8, b"WAVE", "wav"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"fLaC", "flac"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (0, b"#!AMR", "amr"),
    (0, b"MThd\0\0\0\6", "midi"),
    (0, b"caff\0\1", "caf"),
    (0, b"MAC ", "ape"),
    (0, b"wvpk", "wavpack"),
    (0, b"%PDF-", "pdf"),
    (0, b"%!PS", "postscript"),
    (0, b"\xc5\xd0\xd3\xc6", "postscript"),
    (0, b"{\\rtf", "rtf"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "office"),
    (0, b"AT&TFORM", "office"),
    (0, b"\x06\x06\xed\xf5\xd8\x1d\x46\xe5", "indesign"),
    (0, b"\0\0\1\0", "icon"),
    (0, b"\0\0\2\0", "icon"),
    (0, b"icns", "icon"),
    (0, b"\xd7\xcd\xc6\x9a", "metafile"),
    (40, b" EMF", "metafile"),
    (0, b"glTF", "model3d"),
    (0, b"BLENDER", "model3d"),
    (0, b"SQLite format 3\0", "sqlite"),
    (0, b"\x37\x7f\x06\x82", "sqlite"),
    (0, b"\x37\x7f\x06\x83", "sqlite"),
    (0, b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", "sqlite"),
    (0, b"\0\0\0\1Bud1", "ds_store"),
    (0, b"CMMM", "thumbs_db"),
    (0, b"bplist00", "plist"),
    (4, b"Standard Jet DB", "access"),
    (4, b"Standard ACE DB", "access"),
    (0, b"PK\3\4", "zip"),
    (0, b"PK\5\6", "zip"),
    (0, b"PK\7\x08", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!\x1a\7", "rar"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"\x1f\x9d", "compress"),
    (257, b"ustar", "tar"),
    (0, b"MSCF\0\0\0\0", "cab"),
    (0x8001, b"CD001", "iso"),
    (2, b"-lh5-", "lha"),
    (0, b"OTTO", "otf"),
    (0, b"ttcf", "ttf"),
    (0, b"\0\1\0\0\0", "ttf"),
    (0, b"wOFF", "woff"),
    (0, b"wOF2", "woff"),
    (0, b"\x7fELF", "elf"),
    (0, b"\xfe\xed\xfa\xce", "macho"),
    (0, b"\xfe\xed\xfa\xcf", "macho"),
    (0, b"\xce\xfa\xed\xfe", "macho"),
    (0, b"\xcf\xfa\xed\xfe", "macho"),
    (0, b"\xca\xfe\xba\xbe", "class"),
    (0, b"\0asm", "wasm"),
    (0, b"\x4c\0\0\0\1\x14\2\0", "shortcut"),
    (0, b"PAR1", "data"),
    (0, b"PAR2\0PKT", "checksum"),
)
_EXE = re.compile(rb"MZ.{58}(..\0\0)", re.DOTALL)
_PICTURE_MAGICS = (
    *(b"8BPS", b"gimp xcf", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\0\0\0\x0cJXL "),
    *(b"II", b"MM\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM", b"IIRO", b"DDS ", b"v/1\1", b"#?RADIANCE", b"qoif"),
    *(b"BPG\xfb", b"\x8aMNG", b"SIMPLE  =", b"\xff\xd8"),
)
"""What begins so is a picture, of a format that others can read."""
_PICTURE_BRANDS = {b"crx ", b"jxl ", b"jp2 ", b"jpx ", b"jpm ", b"mjp2"}
_ONE_CONTENT = {
    "mp4": {"mp4", "mov", "3gp", "m4a"},
    "mov": {"mp4", "mov", "3gp", "m4a"},
    "ogg": {"ogg", "ogv"},
    "asf": {"asf", "wma"},
    "matroska": {"matroska", "webm"},
    "office": {"office", "thumbs_db", "mail", "access"},
    "zip": {"zip", "office"},
    "pdf": {"pdf", "illustrator"},
    "postscript": {"postscript", "illustrator"},
    "plist": {"plist", "shortcut", "aae"},
    "gzip": {"gzip", "svg"},
}
"""For formats that wrap others: what the ending may make of them."""
_TEXT_NAMES = (
    "xmp json aae pp3 dop cos cop nksc on1 arp spd html csv xml text markdown playlist subtitles mail svg settings"
    " shortcut script marker checksum log index plist rtf model3d data"
)
_TEXT_FORMATS = frozenset(_TEXT_NAMES.split())
_CONTROLS = bytes(i for i in range(32) if i not in b"\a\b\t\n\f\r\x1b") + b"\x7f"
_LFS = "version https://git-lfs.github.com/spec/"
_ENDING = re.compile(r"[a-z0-9_+~-]{1,16}")
_WORDS = {
    "appledouble": "what macOS keeps of a file on other disks",
    "ds_store": "a folder's settings by macOS",
    "thumbs_db": "previews by Windows",
    "html": "an HTML page",
    "xmp": "XMP metadata",
    "json": "JSON",
    "text": "text",
    "office": "an office document",
    "sqlite": "a database",
    "exe": "a program",
    "elf": "a program",
    "macho": "a program",
}


@dataclass(frozen=True)
class _Name:
    """What a file's name says: whether it is to be a photo, or which other format; neither where it is unknown."""

    ending: str
    is_photo: bool
    format: str | None


class KindError(PhotoError):
    """A file that is no photo, or no photo that can be read: `format` is what it is."""

    def __init__(self, code: ErrorCode, message: str, format_name: str) -> None:
        super().__init__(code, message)
        self.format = format_name

    def __reduce__(self) -> tuple[type[KindError], tuple[object, ...]]:
        return KindError, (self.code, self.message, self.format)


def refuse_others(head: bytes, uri: str, with_videos: bool = False) -> None:
    """Raise `KindError` for a file that is no photo, or whose name alone says that it is one; return for all others.

    `head`: the first 64 KiB of the file, or all of it where it is shorter. `uri` is where it was listed. With
    `with_videos`, videos are for the decoder to look at.

    Raises `KindError` (not_a_photo, and for what should be a photo unsupported_format), `PhotoError` (empty).
    """
    name = _name(uri)
    if not head:
        if name.is_photo or name.format is None:
            raise PhotoError(ErrorCode.EMPTY, "the file has no bytes")
        raise KindError(ErrorCode.NOT_A_PHOTO, "an empty file that is no photo by its name", name.format)
    if _is_picture(head):
        return
    found = _format(head, name)
    if with_videos and found in VIDEO_FORMATS:
        return
    if name.ending == "icloud" and found == "plist":
        message = "only iCloud's placeholder is here: have macOS download the photo, then run again"
        raise KindError(ErrorCode.UNSUPPORTED_FORMAT, message, found)
    if name.is_photo:
        if found is not None:
            raise _named_a_photo(head, name, found)
        return  # the decoder knows more, and what is wrong with it
    found = found or name.format
    if found is not None:
        raise KindError(ErrorCode.NOT_A_PHOTO, f"no photo: {words(found)}", found)


def is_named_otherwise(uri: str) -> bool:
    """Whether a file's name says that it is something else than a photo: then its first bytes are asked for alone."""
    return _name(uri).format is not None


def ending_of(uri: str) -> str:
    """Return the ending of a file's name in lower case, with its dot; "" where it has none, or none that is plain."""
    ending = _name(uri).ending
    return f".{ending}" if ending else ""


def group_of(format_name: str | None) -> Group:
    """Return the group in which a skipped file is counted."""
    return _GROUP_OF.get(format_name or "", Group.OTHER)


def words(format_name: str) -> str:
    """Return what a format is, for people: `a video (mp4), which is looked at with --videos`."""
    if format_name in _WORDS:
        return _WORDS[format_name]
    group = group_of(format_name)
    if format_name in VIDEO_FORMATS:
        return f"a video ({format_name}), which is looked at with --videos"
    article = "an" if group == Group.ARCHIVE else "a"
    noun = {Group.OTHER: "file of another kind", Group.DATABASE: "database or index"}.get(group, group[:-1])
    return f"{article} {noun} ({format_name})"


def _named_a_photo(head: bytes, name: _Name, found: str) -> KindError:
    what = words(found)
    if _text(head[: len(_LFS) * 2], is_text=True).startswith(_LFS):
        what = "Git LFS' pointer to it: run `git lfs pull`, then this again"
    return KindError(ErrorCode.UNSUPPORTED_FORMAT, f"its name ends in .{name.ending}, but it is {what}", found)


def _name(uri: str) -> _Name:
    if uri.startswith(("http://", "https://")):
        uri = re.split(r"[?#]", uri)[0]
    base = uri.rsplit("/", 1)[-1].lower()
    stem, dot, ending = base.rpartition(".")
    if not dot or not _ENDING.fullmatch(ending):
        ending = ""
    format_name = _NAMES.get(base)
    if base.startswith("._"):  # macOS', of the file that is named after it
        return _Name(ending, False, "appledouble")
    if format_name is None and dot and not stem:  # .gitignore: a name of settings, and no ending
        return _Name("", False, "settings")
    is_photo = ending in _PHOTO_ENDINGS
    return _Name(ending, is_photo, format_name or (None if is_photo else _ENDINGS.get(ending)))


def _is_picture(head: bytes) -> bool:
    try:
        sniff_format(head)
    except PhotoError:
        brand = head[8:12] if head[4:8] == b"ftyp" else b""
        return brand in _PICTURE_BRANDS or (head.startswith(_PICTURE_MAGICS) and not _text(head))
    return True


def _format(head: bytes, name: _Name) -> str | None:
    """Return the format that the content shows, None where it shows none; the ending says which of several it is."""
    found = next((known for at, magic, known in _MAGICS if head[at : at + len(magic)] == magic), None)
    found = found or _media_format(head)
    if found is None:
        text = _text(head)
        if not text:
            return None
        shown = _shown_by_text(text)
        if shown is None or (shown in ("xml", "json", "plist") and name.format in _TEXT_FORMATS):
            return name.format if name.format in _TEXT_FORMATS else shown or "text"
        return shown
    return name.format if name.format in _ONE_CONTENT.get(found, ()) else found


def _media_format(head: bytes) -> str | None:
    """Return the format of a video, a sound or a program whose beginning is no fixed text."""
    if head[4:8] == b"ftyp" and head[8:11] in (b"M4A", b"M4B", b"M4P"):
        return "m4a"
    if (video_name := video_format(head)) is not None:
        return video_name
    program = _EXE.match(head)
    if program is not None and int.from_bytes(program[1], "little") >= 64:
        return "exe"
    return None


def _text(head: bytes, is_text: bool = False) -> str:
    """Return the beginning of a file that holds text, without blanks before it; "" for any other file."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text = codecs.getincrementaldecoder("utf-16")().decode(head)
        except UnicodeDecodeError:
            return ""
        return text.lstrip() or " " if text.isprintable() or not set(text) & set(map(chr, _CONTROLS)) else ""
    if head.translate(None, _CONTROLS) != head and not is_text:
        return ""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        foreign = sum(byte >= 128 for byte in head)
        if foreign * 3 > len(head):
            return ""
        text = head.decode("cp1252", "replace")
    return text.lstrip() or " "


def _shown_by_text(text: str) -> str | None:
    """Return the format that a text shows by its beginning; None for plain text."""
    start = text[:4096].lstrip().lower()
    if start.startswith(("<?xpacket", "<x:xmpmeta", "<rdf:rdf")) or "<x:xmpmeta" in start or "adobe:ns:meta/" in start:
        return "xmp"
    if start.startswith(("<!doctype html", "<html")) or "<html" in start[:1024]:
        return "html"
    if start.startswith("<svg") or (start.startswith("<?xml") and "<svg" in start):
        return "svg"
    if start.startswith(("<?xml", "<!doctype", "<!--")):
        return "plist" if "<plist" in start else "xml"
    if start.startswith(("{", "[")):
        return "json"
    if start.startswith("#extm3u"):
        return "playlist"
    if start.startswith("webvtt"):
        return "subtitles"
    return "script" if start.startswith("#!") else None
