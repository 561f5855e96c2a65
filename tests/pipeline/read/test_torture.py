"""Every odd and every real file of the shared data: each gives a photo or a typed refusal, and nothing else.

Fuzzers' files may crash a decoder outright, so this module is also its own child process (see `__main__`), which
decodes under limits of memory and time, one line a file; the parent notes a death as that file's outcome and goes on.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import schema

_ROOT = Path(__file__).parents[3]
_DATA = _ROOT.parent / "shared" / "data"
_MEMORY_LIMIT_BYTES = 4 << 30
_STALL_S = 60
# Looked at class by class (a contact sheet of all that decode; each refusal's message). Refused though a viewer shows
# something: PNGs with a bad checksum in their data, JPEGs with lost bits, an AVIF sequence without a still. Decoded
# though Pillow refuses: a JPEG whose data are complete and only the end marker is missing, APNGs with broken frame
# tables, and what breaks off after nine tenths of its rows. A row a file: its kind by its first bytes, and its code
# or `ok`.
_EXPECTED = Path(__file__).with_name("torture_outcomes.csv")


def _outcomes(folder: str) -> dict[str, dict[str, object]]:
    """Decode every file that <folder>.csv lists, in child processes; return path → what became of it."""
    table = _DATA / f"{folder}.csv"
    if not table.exists():
        pytest.skip(f"the shared photos are not here ({table})")
    with table.open(newline="", encoding="utf-8") as lines:
        waiting = [row["path"] for row in csv.DictReader(lines)]
    outcomes: dict[str, dict[str, object]] = {}
    while waiting:
        seen = _run_child(folder, waiting)
        outcomes |= seen
        waiting = waiting[len(seen) :]
    return outcomes


def _run_child(folder: str, paths: list[str]) -> dict[str, dict[str, object]]:
    """Run one child over `paths`; when it dies or stalls, the file it was at gets the outcome `child died`."""
    command = [sys.executable, __file__, str(_DATA / folder)]
    outcomes: dict[str, dict[str, object]] = {}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=_ROOT
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(paths))
        child.stdin.close()
        watchdog = threading.Timer(_STALL_S, child.kill)
        watchdog.start()
        for line in child.stdout:
            watchdog.cancel()
            outcomes[paths[len(outcomes)]] = json.loads(line)
            watchdog = threading.Timer(_STALL_S, child.kill)
            watchdog.start()
        watchdog.cancel()
    if len(outcomes) < len(paths):
        outcomes[paths[len(outcomes)]] = {"code": "child died", "message": f"exit status {child.returncode}"}
    return outcomes


def test_torture_files_each_have_their_recorded_outcome() -> None:
    outcomes = _outcomes("torture")
    with _EXPECTED.open(newline="", encoding="utf-8") as lines:
        expected = {row["path"]: row["code"] for row in csv.DictReader(lines)}
    assert len(expected) == 488
    assert set(expected.values()) <= {"ok", *schema.ErrorCode}
    assert {path: outcome["code"] for path, outcome in outcomes.items()} == expected


def test_shared_photos_decode_and_tell_their_position() -> None:
    outcomes = _outcomes("photos")
    with (_DATA / "photos.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    refused = {path: outcome["code"] for path, outcome in outcomes.items() if outcome["code"] != "ok"}
    # The one was cut in the middle of its data; the other's colours shift from two thirds down. Neither shows a place.
    assert refused == {"Pillow_354721219d6f.jpg": "truncated", "imagemeta_0b27407b57b9.jpg": "corrupt"}
    assert sum(row["scene_ok"] == "1" and outcomes[row["path"]]["code"] == "ok" for row in rows) == 585
    located = [row for row in rows if row["coord_source"] == "EXIF GPS"]
    assert len(located) == 158
    for row in located:
        position = outcomes[row["path"]]["position"]
        assert position == pytest.approx([float(row["lat"]), float(row["lon"])], abs=1e-4), row["path"]


def _decode_in_child(folder: Path) -> None:
    import resource

    sys.path.insert(0, str(_ROOT))
    from pipeline.decode.photo import DecodeFailure, DecodeTarget, decode_photo

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    target = DecodeTarget(image_size_px=224, resize_px=256)
    for path in json.load(sys.stdin):
        code, message = "ok", ""
        try:
            photo = decode_photo((folder / path).read_bytes(), target)
            exif = photo.exif
            assert photo.pixels_HWC.shape == (224, 224, 3)
        except DecodeFailure as failure:
            code, message = str(failure.code), failure.message
            exif = failure.facts.exif if failure.facts else None
        position = [exif.lat_deg, exif.lon_deg] if exif else None
        print(json.dumps({"code": code, "message": message, "position": position}), flush=True)  # noqa: T201


if __name__ == "__main__":
    _decode_in_child(Path(sys.argv[1]))
