"""Distances, directions and means on a spherical Earth, vectorised.

Shapes: N points; 3 the components x (to 0° N 0° E), y (to 0° N 90° E), z (to the north pole) of a unit vector.
Latitudes and longitudes are degrees; arguments broadcast against each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS_KM = 6371.0
"""Mean radius of the sphere on which the field measures (the evaluation scripts of Vo et al. 2017 and of jtheiner's
GeoEstimation): thresholds such as 1 or 25 km mean great-circle distance on it, not on the ellipsoid."""

_SHORTEST_MEAN = 1e-9


def haversine_km(
    lat1_deg: ArrayLike, lon1_deg: ArrayLike, lat2_deg: ArrayLike, lon2_deg: ArrayLike
) -> NDArray[np.float64]:
    """Return great-circle distances in km by the haversine formula, exact to rounding for near and antipodal points."""
    lat1, lon1, lat2, lon2 = (np.radians(np.asarray(a, np.float64)) for a in (lat1_deg, lon1_deg, lat2_deg, lon2_deg))
    half_chord_squared = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half_chord_squared, 0.0, 1.0))))


def unit_vectors_N3(lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> NDArray[np.float64]:
    """Return the unit vectors of points, one row each."""
    lat, lon = np.radians(np.asarray(lat_deg_N, np.float64)), np.radians(np.asarray(lon_deg_N, np.float64))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) * np.ones_like(lon)], axis=-1)


def directions_deg(vectors_N3: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (lat_deg_N, lon_deg_N) of vectors of any length but zero; longitudes lie in [-180, 180]."""
    vectors = np.asarray(vectors_N3, np.float64)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))


def mean_point(lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> tuple[float, float]:
    """Return (lat_deg, lon_deg) of the mean on the sphere: right across the antimeridian and at the poles.

    Raises ValueError for no points, or for points that cancel out (such as two antipodes) and so have no mean.
    """
    vectors_N3 = unit_vectors_N3(lat_deg_N, lon_deg_N).reshape(-1, 3)
    mean_3 = vectors_N3.mean(axis=0) if len(vectors_N3) else np.zeros(3)
    if not np.linalg.norm(mean_3) > _SHORTEST_MEAN:
        raise ValueError(f"{len(vectors_N3)} points have no mean on the sphere: give points that do not cancel out")
    lat_deg, lon_deg = directions_deg(mean_3)
    return float(lat_deg), float(lon_deg)


def destination_point(
    lat_deg: ArrayLike, lon_deg: ArrayLike, bearing_deg: ArrayLike, distance_km: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (lat_deg, lon_deg) reached from points along great circles; bearings are clockwise from north."""
    lat, lon, bearing = (np.radians(np.asarray(a, np.float64)) for a in (lat_deg, lon_deg, bearing_deg))
    angle = np.asarray(distance_km, np.float64) / EARTH_RADIUS_KM
    north_3 = np.stack(
        np.broadcast_arrays(-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)), axis=-1
    )
    east_3 = np.stack(np.broadcast_arrays(-np.sin(lon), np.cos(lon), np.zeros_like(lon)), axis=-1)
    start_3 = unit_vectors_N3(lat_deg, lon_deg)
    heading_3 = north_3 * np.cos(bearing)[..., None] + east_3 * np.sin(bearing)[..., None]
    return directions_deg(start_3 * np.cos(angle)[..., None] + heading_3 * np.sin(angle)[..., None])
