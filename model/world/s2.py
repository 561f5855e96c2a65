"""S2 cell ids of points, their parents, ranges, tokens and centres, in numpy: a million points a second or more.

The S2 geometry library's definition: a point is projected on the cube's face it lies behind (0..5), the face's (u, v)
in [-1, 1] become (s, t) in [0, 1] by a quadratic that evens out cell areas, (s, t) become integers (i, j) of 30 bits,
and a Hilbert curve through the face orders these. A cell id is 3 bits of face, 2 bits for each level of the curve, a 1
bit, zeros. Public description: https://s2geometry.io/devguide/s2cell_hierarchy (quadratic projection, Hilbert curve).

Shapes: N cells or points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.world import geodesy

MAX_LEVEL = 30
_SIDE = 1 << MAX_LEVEL
_FACES = 6
_CHUNK = 1 << 14

# The Hilbert curve: in each of four orientations (bit 0: axes swapped, bit 1: both reversed), the quadrant (i bit · 2 +
# j bit) that comes first, second, third and fourth, and what each does to the orientation inside it.
_SWAP, _REVERSE = 1, 2
_QUADRANTS = np.array([[0, 1, 3, 2], [0, 2, 3, 1], [3, 2, 0, 1], [3, 1, 0, 2]])
_TURN = np.array([_SWAP, 0, 0, _SWAP | _REVERSE])
_STEP_BITS = 5  # levels of the curve that one table look-up passes: 6 of them make the 30


def _curve_tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tables (orientation, i bits, j bits) → (position bits, new orientation) and its inverse."""
    orientation, i, j, position = np.arange(4), np.zeros(4, int), np.zeros(4, int), np.zeros(4, int)
    start = orientation
    for _ in range(_STEP_BITS):
        quadrant = _QUADRANTS[orientation].ravel()
        i = 2 * np.repeat(i, 4) + (quadrant >> 1)
        j = 2 * np.repeat(j, 4) + (quadrant & 1)
        position = (4 * position[:, None] + np.arange(4)).ravel()
        orientation = (orientation[:, None] ^ _TURN).ravel()
        start = np.repeat(start, 4)
    forward, backward = np.empty(len(i), np.int64), np.empty(len(i), np.int64)
    forward[(i << (_STEP_BITS + 2)) | (j << 2) | start] = (position << 2) | orientation
    backward[(position << 2) | start] = (i << (_STEP_BITS + 2)) | (j << 2) | orientation
    return forward, backward


_IJ_TO_POSITION, _POSITION_TO_IJ = _curve_tables()


def leaf_id_N(lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> NDArray[np.uint64]:
    """Return the S2 leaf cell (level 30, about 1 cm) of each point; longitudes may be any finite number.

    Raises ValueError for coordinates that are not finite, and for latitudes beyond the poles.
    """
    lat_deg, lon_deg = np.broadcast_arrays(np.asarray(lat_deg_N, np.float64), np.asarray(lon_deg_N, np.float64))
    if not (np.abs(lat_deg) <= 90).all() or not np.isfinite(lon_deg).all():
        raise ValueError("latitudes must be numbers from -90 to 90, longitudes finite numbers, in degrees")
    shape, lat_deg, lon_deg = lat_deg.shape, lat_deg.ravel(), lon_deg.ravel()
    cell_id = np.empty(lat_deg.shape, np.uint64)
    for start in range(0, len(cell_id), _CHUNK):  # chunks that stay in the processor's cache
        part = slice(start, start + _CHUNK)
        cell_id[part] = _leaf_id_of_face_ij(*_face_ij(np.radians(lat_deg[part]), np.radians(lon_deg[part])))
    return cell_id.reshape(shape)


def cell_id_N(lat_deg_N: ArrayLike, lon_deg_N: ArrayLike, level: int) -> NDArray[np.uint64]:
    """Return the S2 cell of the given level (0..30) that holds each point. Raises ValueError as `leaf_id_N` does."""
    return parent_N(leaf_id_N(lat_deg_N, lon_deg_N), level)


def is_valid_N(cell_ids_N: ArrayLike) -> NDArray[np.bool_]:
    """Return whether each number is an S2 cell id: a face below 6, and its lowest 1 bit in an even place."""
    ids = np.asarray(cell_ids_N, np.uint64)
    return np.asarray((ids >> np.uint64(61) < _FACES) & (_lowest_bit(ids) & np.uint64(0x1555555555555555) != 0))


def level_of_N(cell_ids_N: ArrayLike) -> NDArray[np.int8]:
    """Return the S2 level (0..30) of each cell."""
    lowest = _lowest_bit(np.asarray(cell_ids_N, np.uint64))
    return np.asarray(MAX_LEVEL - (np.frexp(lowest.astype(np.float64))[1] - 1) // 2).astype(np.int8)


def parent_N(cell_ids_N: ArrayLike, level: int) -> NDArray[np.uint64]:
    """Return each cell's ancestor of the given level: itself where it is of that level. Finer is not possible."""
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"S2 levels are 0 to {MAX_LEVEL}, not {level}")
    mark = np.uint64(1 << 2 * (MAX_LEVEL - level))
    return np.asarray((np.asarray(cell_ids_N, np.uint64) & ~(mark - np.uint64(1)) & ~mark) | mark)


def range_min_N(cell_ids_N: ArrayLike) -> NDArray[np.uint64]:
    """Return the smallest leaf cell id in each cell."""
    ids = np.asarray(cell_ids_N, np.uint64)
    return np.asarray(ids - (_lowest_bit(ids) - np.uint64(1)))


def range_max_N(cell_ids_N: ArrayLike) -> NDArray[np.uint64]:
    """Return the largest leaf cell id in each cell."""
    ids = np.asarray(cell_ids_N, np.uint64)
    return np.asarray(ids + (_lowest_bit(ids) - np.uint64(1)))


def token(cell_id: int) -> str:
    """Return a cell's token: its id in hex without the trailing zeros ("X" for 0, which is no cell)."""
    return f"{int(cell_id):016x}".rstrip("0") or "X"


def from_token(text: str) -> int:
    """Return the cell id of a token. Raises ValueError for text that names no S2 cell."""
    cell_id = (
        int(text.ljust(16, "0"), 16) if 0 < len(text) <= 16 and set(text.lower()) <= set("0123456789abcdef") else 0
    )
    if not is_valid_N(cell_id):
        raise ValueError(f"{text!r} is not the token of an S2 cell")
    return cell_id


def centre_deg_N(cell_ids_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (lat_deg_N, lon_deg_N) of the cells' centres: the middle in (s, t), as the S2 library has it."""
    ids = np.asarray(cell_ids_N, np.uint64)
    face, i, j = _face_ij_of_leaf_id(range_min_N(ids))
    side = np.int64(1) << (MAX_LEVEL - level_of_N(ids).astype(np.int64))
    middle = side / 2
    u, v = (_st_to_uv(((x & -side) + middle) / _SIDE) for x in (i, j))
    return geodesy.directions_deg(_face_uv_to_xyz(face, u, v))


def _lowest_bit(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.asarray(ids & np.negative(ids))


def _face_ij(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
    """Return (face, i, j) of points in radians."""
    x, y, z = np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat)
    abs_x, abs_y, abs_z = np.abs(x), np.abs(y), np.abs(z)
    on_x = (abs_x > abs_y) & (abs_x > abs_z)
    on_y = ~on_x & (abs_y >= abs_x) & (abs_y > abs_z)
    axis = np.where(on_x, x, np.where(on_y, y, z))
    # Faces 0, 1, 2 look along +x, +y, +z; 3, 4, 5 along -x, -y, -z with u and v exchanged.
    first = np.where(on_x, y, -x) / axis
    second = np.where(on_x | on_y, z, -y) / axis
    negative = axis < 0
    face = np.where(on_x, 0, np.where(on_y, 1, 2)) + 3 * negative
    i = _uv_to_ij(np.where(negative, second, first))
    j = _uv_to_ij(np.where(negative, first, second))
    return face, i, j


def _uv_to_ij(u: NDArray[np.float64]) -> NDArray[np.int64]:
    root = 0.5 * np.sqrt(1 + 3 * np.abs(u))
    st: NDArray[np.float64] = np.where(u >= 0, root, 1 - root)
    return np.clip(np.floor(_SIDE * st), 0, _SIDE - 1).astype(np.int64)


def _st_to_uv(s: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.where(s >= 0.5, (4 * s * s - 1) / 3, (1 - 4 * (1 - s) * (1 - s)) / 3))


def _face_uv_to_xyz(face: NDArray[np.int64], u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    one = np.ones_like(u)
    by_face = [(one, u, v), (-u, one, v), (-u, -v, one), (-one, -v, -u), (v, -one, -u), (v, u, -one)]
    return np.stack([np.choose(face, [xyz[c] for xyz in by_face]) for c in range(3)], axis=-1)


def _leaf_id_of_face_ij(face: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.uint64]:
    mask = (1 << _STEP_BITS) - 1
    orientation, position = face & _SWAP, face
    for shift in range(MAX_LEVEL - _STEP_BITS, -1, -_STEP_BITS):
        key = (((i >> shift) & mask) << (_STEP_BITS + 2)) | (((j >> shift) & mask) << 2) | orientation
        found = _IJ_TO_POSITION[key]
        position = (position << 2 * _STEP_BITS) | (found >> 2)
        orientation = found & 3
    return (position.astype(np.uint64) << np.uint64(1)) | np.uint64(1)


def _face_ij_of_leaf_id(ids: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    position = (ids >> np.uint64(1)).astype(np.int64)
    face = position >> 2 * MAX_LEVEL
    mask = (1 << _STEP_BITS) - 1
    orientation, i, j = face & _SWAP, np.zeros_like(face), np.zeros_like(face)
    for shift in range(2 * (MAX_LEVEL - _STEP_BITS), -1, -2 * _STEP_BITS):
        found = _POSITION_TO_IJ[(((position >> shift) & (mask << _STEP_BITS | mask)) << 2) | orientation]
        i = (i << _STEP_BITS) | (found >> (_STEP_BITS + 2))
        j = (j << _STEP_BITS) | ((found >> 2) & mask)
        orientation = found & 3
    return face, i, j
