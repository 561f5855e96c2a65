"""How much of a JPEG is there whose data end early, or go on as a hole of zeros where a copy broke off.

Of a sequential JPEG in one scan rows are counted, as its codec writes them. Any other comes in scans, each of which
brings some frequencies of some colours for the whole picture: of these, the share that has had its first bits is
counted, over all colours; bits that only refine those count little, as they are little seen.
Source: ITU-T T.81, annexes B, F and G.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]", re.DOTALL)
_HOLE_BYTES = 512
"""So many bytes of one kind in a row are no picture: a sector of a disk that was never written."""
_MOST_WALKED_BYTES = 2 << 20
"""Of a scan that is cut so much is walked through in Python, some 2 s; a longer one counts as missing."""
_MOST_SEGMENTS = 1000
_OF_REFINEMENT = 0.1
_COEFFICIENTS = 64


@dataclass(frozen=True)
class _Scan:
    """A scan: its colours (by their places in the frame), its band of frequencies, whether it brings more bits of what
    was there before, how many are to come after it, and its data, with the tables that they need."""

    components: tuple[int, ...]
    tables: tuple[int, ...]
    first: int
    last: int
    is_refining: bool
    bits_left: int
    start: int
    end: int
    restart_blocks: int
    codes: dict[int, bytes]


@dataclass(frozen=True)
class _Frame:
    """The frame header: its process, its size, and each colour's id and sampling across and down."""

    marker: int
    width_px: int
    height_px: int
    components: tuple[tuple[int, int, int], ...]

    def blocks(self, component: int) -> tuple[int, int]:
        """Return how many blocks of 8 × 8 samples a colour has across and down, in a scan of its own."""
        most_across = max(across for _, across, _ in self.components)
        most_down = max(down for _, _, down in self.components)
        _, across, down = self.components[component]
        return -(-self.width_px * across // (8 * most_across)), -(-self.height_px * down // (8 * most_down))


def find_hole(data: bytes, start: int) -> int | None:
    """Return where the first part of the data begins that was never written; None where there is none.

    Only every 256th byte is looked at, and more where that may be one: it takes 20 µs a megabyte.
    """
    step = _HOLE_BYTES // 2
    sampled = np.frombuffer(data, np.uint8)[start::step]
    for place in np.flatnonzero((sampled == 0) | (sampled == 255)).tolist():
        at = start + place * step
        byte = data[at : at + 1]
        if data[at : at + step] == byte * step:
            begin = max(start, at - step)
            begin += len(data[begin:at].rstrip(byte))
            if data[begin : begin + _HOLE_BYTES] == byte * _HOLE_BYTES:
                return begin
    return None


def data_end(data: bytes, start: int) -> int:
    """Return where the picture's data, which begin at `start`, break off: at a hole, or before zeros at their end."""
    hole = find_hole(data, start)
    return max(start, len(data[:hole].rstrip(b"\0\xff")))


def first_scan_end(data: bytes, start: int) -> int:
    """Return where the first scan's data, which begin at `start`, end: at the next marker, or where they break off."""
    end = data_end(data, start)
    found = _MARKER.search(data, start, end)
    return end if found is None else found.start()


def breaks_off_unnoticed(data: bytes, start: int) -> bool:
    """Whether the only scan's data, which begin at `start`, have a hole of which a codec makes a picture of its own.

    Where its codes make a plain picture of zeros, nobody can tell a plain picture from a hole: then it is none.
    """
    hole = find_hole(data, start)
    if hole is None:
        return False
    found = _MARKER.search(data, start)
    if found is not None and found.start() < hole:
        return False
    _, scans = _walked(data)
    tables = [(scan.codes.get(each >> 4), scan.codes.get(0x10 | each & 15)) for scan in scans for each in scan.tables]
    return any(dc is not None and ac is not None and (dc[16:17] != b"\0" or ac[16:17] != b"\0") for dc, ac in tables)


def share_of_scans(data: bytes) -> tuple[float, int, bool]:
    """Return which share of the picture is there and where that ends, and whether it is all if the last scan is whole.

    A frequency of which bits are still to come counts nine tenths at first.
    """
    frame, scans = _walked(data)
    if frame is None or not scans:
        return 0.0, len(data), False
    least, most = _share(frame, scans, 0.0), _share(frame, scans, 1.0)
    if most > least:
        least = _share(frame, scans, _share_of_last(data, frame, scans[-1]))
    return least, scans[-1].end, most == 1.0


def _walked(data: bytes) -> tuple[_Frame | None, list[_Scan]]:
    """Read the markers of a JPEG whose headers are known to be whole, up to where its data break off."""
    frame: _Frame | None = None
    scans: list[_Scan] = []
    codes: dict[int, bytes] = {}
    at, end, restart_blocks = 2, len(data), 0
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at, end)
        if found is None or found[1] == b"\xd9":
            break
        marker, at = found[1][0], found.end()
        if marker in (0x01, 0xD8):
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        segment, at = data[at + 2 : at + length], at + length
        if at > end:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and frame is None:
            frame = _frame(marker, segment)
        elif marker == 0xC4:
            codes = codes | _tables(segment)
        elif marker == 0xDD:
            restart_blocks = int.from_bytes(segment[:2], "big")
        elif marker == 0xDA and frame is not None:
            if not scans:
                end = data_end(data, at)
            following = _MARKER.search(data, at, end)
            scan_end = end if following is None else following.start()
            scan = _scan(frame, segment, at, scan_end, restart_blocks, codes)
            if scan is not None:
                scans.append(scan)
            at = scan_end
    return frame, scans


def _frame(marker: int, segment: bytes) -> _Frame:
    parts = tuple((segment[i], segment[i + 1] >> 4, segment[i + 1] & 15) for i in range(6, len(segment) - 2, 3))
    return _Frame(marker, int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big"), parts)


def _scan(
    frame: _Frame, segment: bytes, start: int, end: int, restart_blocks: int, codes: dict[int, bytes]
) -> _Scan | None:
    count = segment[0] if segment else 0
    if len(segment) < 4 + 2 * count:
        return None
    ids = [each for each, _, _ in frame.components]
    chosen = [(segment[1 + 2 * i], segment[2 + 2 * i]) for i in range(count)]
    if any(each not in ids for each, _ in chosen):
        return None
    first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
    if frame.marker not in (0xC2, 0xCA):
        first, last, bits = 0, _COEFFICIENTS - 1, 0
    components = tuple(ids.index(each) for each, _ in chosen)
    tables = tuple(table for _, table in chosen)
    return _Scan(components, tables, first, min(last, 63), bits >> 4 > 0, bits & 15, start, end, restart_blocks, codes)


def _tables(segment: bytes) -> dict[int, bytes]:
    """Return the Huffman codes of a segment: 16 numbers of codes by length, then the symbols; by class and number."""
    found, at = {}, 0
    while at + 17 <= len(segment):
        symbols = sum(segment[at + 1 : at + 17])
        found[segment[at]] = segment[at + 1 : at + 17 + symbols]
        at += 17 + symbols
    return found


def _share(frame: _Frame, scans: list[_Scan], of_last: float) -> float:
    """Return the share of all colours' frequencies that is there, if the last scan is there by `of_last`."""
    there, bits_at_first, bits_left = np.zeros((3, len(frame.components), _COEFFICIENTS))
    for number, scan in enumerate(scans):
        share = of_last if number == len(scans) - 1 else 1.0
        band = (list(scan.components), slice(scan.first, scan.last + 1))
        if not scan.is_refining:
            there[band] = np.maximum(there[band], share)
            bits_at_first[band] = bits_left[band] = scan.bits_left
        elif share == 1:
            bits_left[band] = scan.bits_left
    there *= 1 - _OF_REFINEMENT * bits_left / np.maximum(bits_at_first, 1)
    samples = np.array([across * down for _, across, down in frame.components], np.float64)
    share = float((there.mean(axis=1) * samples).sum() / samples.sum())
    return share if (there[:, 0] > 0).all() else 0.0


def _share_of_last(data: bytes, frame: _Frame, scan: _Scan) -> float:
    """Return how much of the last scan is there: of one colour's, blocks are counted; of several's, nothing is told."""
    is_sequential = frame.marker in (0xC0, 0xC1)
    is_walked = frame.marker == 0xC2 or is_sequential
    if len(scan.components) != 1 or not is_walked or scan.is_refining:
        return 0.0
    if scan.end - scan.start > _MOST_WALKED_BYTES or not (scan.first or is_sequential):
        return 0.0
    wide, high = frame.blocks(scan.components[0])
    tables = [scan.codes.get(scan.tables[0] >> 4), scan.codes.get(0x10 | scan.tables[0] & 15)]
    if tables[1] is None or (is_sequential and tables[0] is None):
        return 0.0
    lookups = [None if table is None else _lookup(table) for table in tables]
    done, parts = 0, _RESTART.split(data[scan.start : scan.end])
    for number, part in enumerate(parts):
        most = scan.restart_blocks or wide * high
        whole = _blocks(part.replace(b"\xff\0", b"\xff"), scan, lookups if is_sequential else [None, lookups[1]], most)
        done += whole
        if whole < most and number < len(parts) - 1:
            break
    return min(1.0, (done // wide) / high)


def _lookup(table: bytes) -> list[int]:
    """Return for each 16 bits the code that they begin with: its symbol, and its length in the bits above 8."""
    found = [0] * 65_536
    code, at = 0, 16
    for length in range(1, 17):
        for symbol in table[at : at + table[length - 1]]:
            start, stop = code << (16 - length), (code + 1) << (16 - length)
            if stop > 65_536:
                return found
            found[start:stop] = [length << 8 | symbol] * (stop - start)
            code += 1
        at += table[length - 1]
        code <<= 1
    return found


def _blocks(data: bytes, scan: _Scan, lookups: list[list[int] | None], most: int) -> int:
    """Return how many blocks of one colour the data hold whole, at most so many."""
    dc, ac = lookups
    assert ac is not None
    bits, have, at, done, run = 0, 0, 0, 0, 0
    first, last = (1 if dc is not None else scan.first), scan.last
    padded = data + bytes(8)  # to look ahead; what lies in it does not count
    size = len(data)
    while done < most:
        if run:
            skipped = min(run, most - done)
            run, done = run - skipped, done + skipped
            continue
        k = first
        if dc is not None:
            while have < 32 and at < size + 4:
                bits, have, at = (bits << 8 | padded[at]) & 0xFFFFFFFFFFFF, have + 8, at + 1
            if have < 16:
                return done
            entry = dc[bits >> (have - 16) & 0xFFFF]
            have -= (entry >> 8) + (entry & 15)
            if not entry:
                return done
        while k <= last:
            while have < 32 and at < size + 4:
                bits, have, at = (bits << 8 | padded[at]) & 0xFFFFFFFFFFFF, have + 8, at + 1
            if have < 16:
                return done
            entry = ac[bits >> (have - 16) & 0xFFFF]
            if not entry:
                return done
            have -= entry >> 8
            zeros, length = entry >> 4 & 15, entry & 15
            if length:
                k += zeros + 1
                have -= length
            elif zeros == 15:
                k += 16
            else:
                run = (1 << zeros) - 1 + (bits >> (have - zeros) & (1 << zeros) - 1) if dc is None else 0
                have -= zeros if dc is None else 0
                break
            if have < 0:
                return done
        if 8 * at - have > 8 * size:  # it has looked beyond the end
            return done
        done += 1
    return done
