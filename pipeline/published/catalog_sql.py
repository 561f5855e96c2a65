"""The SQL by which published photos are asked about: views and macros over the view `photos`.

Arguments that are constants fold, before anything is read, into plain comparisons of columns with numbers: those DuckDB
compares with the statistics of files and row groups, and skips what can't match.
"""

from __future__ import annotations

from pipeline import schema

DEFINITIONS = """
CREATE MACRO _half_chord_squared(lat1, lon1, lat2, lon2) AS
    sin((radians(lat2) - radians(lat1)) / 2) ** 2
    + cos(radians(lat1)) * cos(radians(lat2)) * sin((radians(lon2) - radians(lon1)) / 2) ** 2;
-- CASE and not least(): that would make 1 of null, and so the other side of the Earth of an unknown place.
CREATE MACRO distance_km(lat1, lon1, lat2, lon2) AS
    2 * 6371.0 * asin(sqrt(CASE WHEN _half_chord_squared(lat1, lon1, lat2, lon2) > 1 THEN 1.0
        ELSE _half_chord_squared(lat1, lon1, lat2, lon2) END));

-- A circle's box. A billionth of a degree, a tenth of a millimetre, keeps what rounding would take from its edges.
CREATE MACRO _reach_lat(km) AS degrees(km / 6371.0) + 1e-9;
-- 90 and more where the circle holds a pole: any longitude then. Each argument stands once, for macros are pasted text.
CREATE MACRO _reach_lon(lat, km) AS
    degrees(asin(least(1.0, sin(radians(least(90.0, _reach_lat(km)))) / cos(radians(lat))))) + 1e-9;
CREATE MACRO _wrapped(lon) AS (lon + 540) % 360 - 180;
CREATE MACRO _lon_within(lon, west, east) AS
    CASE WHEN west <= east THEN lon BETWEEN west AND east ELSE lon >= west OR lon <= east END;

CREATE MACRO within_km(lat, lon, km) AS TABLE
    FROM photos WHERE status = 'located' AND CASE
        WHEN abs(lat) <= 90 AND isfinite(lon) AND km >= 0 THEN
            lat_deg BETWEEN lat - _reach_lat(km) AND lat + _reach_lat(km)
            AND CASE WHEN _reach_lon(lat, km) >= 90 THEN true ELSE _lon_within(
                lon_deg, _wrapped(lon % 360 - _reach_lon(lat, km)), _wrapped(lon % 360 + _reach_lon(lat, km))) END
            AND distance_km(lat, lon, lat_deg, lon_deg) <= km
        ELSE error('within_km(lat, lon, km): give a latitude from -90 to 90, a longitude, and km of 0 or more') END;

CREATE MACRO bbox(west, south, east, north) AS TABLE
    FROM photos WHERE status = 'located' AND CASE
        WHEN abs(west) <= 180 AND abs(east) <= 180 AND south <= north THEN
            lat_deg BETWEEN south AND north AND _lon_within(lon_deg, west, east)
        ELSE error('bbox(west, south, east, north): give longitudes from -180 to 180 and south below north;'
            || ' a box with west > east crosses the antimeridian') END;

-- A token is a cell id in hex without the zeros at its end; its lowest 1 bit tells the cell's size.
CREATE MACRO _cell_of(token) AS CASE WHEN regexp_full_match(token, '[0-9a-fA-F]{1,16}')
    THEN ('0x' || rpad(token, 16, '0'))::UBIGINT END;
CREATE MACRO _lowest_bit(id) AS xor(id, id - 1) // 2 + 1;
CREATE MACRO _is_cell(id) AS id <> 0 AND (id >> 61) < 6 AND (_lowest_bit(id) & 1537228672809129301::UBIGINT) <> 0;
CREATE MACRO in_cell(token) AS TABLE
    FROM photos WHERE status = 'located' AND CASE
        WHEN _is_cell(_cell_of(token)) THEN
            cell_id BETWEEN _cell_of(token) - (_lowest_bit(_cell_of(token)) - 1)
            AND _cell_of(token) + (_lowest_bit(_cell_of(token)) - 1)
        ELSE error('in_cell(token): ''' || token || ''' is not the token of an S2 cell, such as 4716') END;

CREATE VIEW photos_here AS FROM photos WHERE gone_since IS NULL;
CREATE VIEW failures AS FROM photos WHERE status = 'failed';
CREATE VIEW levels AS
    SELECT photo_id, uri, cell.level, cell.s2_level, cell.cell_id, cell.cell_token, cell.lat_deg, cell.lon_deg,
        cell.probability
    FROM (SELECT photo_id, uri, unnest(levels) AS cell FROM photos);
CREATE VIEW accuracy AS
    SELECT photo_id, uri, taken_at, recorded_by, recorded_lat_deg, recorded_lon_deg, lat_deg, lon_deg, error_km,
        error_km <= 1 AS within_1_km, error_km <= 25 AS within_25_km, error_km <= 200 AS within_200_km,
        error_km <= 750 AS within_750_km, error_km <= 2500 AS within_2500_km,
        radius_km, error_km <= radius_km AS inside_radius,
        recorded_country_code, recorded_country, country_code, country, recorded_country = country AS same_country,
        country_probability, confidence, scene, precision, model_id, run_id,
        context_lat_deg, context_lon_deg, context_error_km, context_error_km <= context_radius_km AS
        inside_context_radius, context_confidence, context_photos
    FROM (SELECT *, distance_km(recorded_lat_deg, recorded_lon_deg, lat_deg, lon_deg) AS error_km,
        distance_km(recorded_lat_deg, recorded_lon_deg, context_lat_deg, context_lon_deg) AS context_error_km
        FROM photos)
    WHERE error_km IS NOT NULL;

COMMENT ON VIEW photos IS 'the newest row of every photo, or the answer that it failed to renew';
COMMENT ON VIEW history IS 'every row that was ever published: one for each photo and run';
COMMENT ON VIEW failures IS 'photos that could not be looked at';
COMMENT ON VIEW levels IS 'one row for each photo and geographic level: its best cell there';
COMMENT ON VIEW accuracy IS 'photos with a place whose file has one too: how far the two are apart';
COMMENT ON TABLE runs IS 'one row for each finished run';
COMMENT ON TABLE source_problems IS 'parts of sources that a run could not list: all else was done without them';
COMMENT ON MACRO distance_km IS 'great-circle distance';
COMMENT ON MACRO TABLE within_km IS 'located photos at most so far from a point';
COMMENT ON MACRO TABLE bbox IS 'located photos in a box; west > east crosses the antimeridian';
COMMENT ON MACRO TABLE in_cell IS 'located photos in an S2 cell';
"""
"""Makes every view and macro, given `photos`, `history` and `runs`; distances are `model.world.geodesy`'s (tested)."""

_MISSED = f"coalesce(error_code IN ({', '.join(repr(str(code)) for code in schema.FETCH_ERRORS)}), false)"


def shown_first(rows: str, order: str) -> str:
    """Return SQL for `rows` with two columns more: `nth`, 1 for the row that stands for its photo, and `is_newest`.

    `order` is a column of `rows` that grows with the order of runs. A photo's newest row stands for it; but one that
    failed to be fetched never hides an answer of the same version: the newest of those stands then.
    """
    return f"""
        SELECT * EXCLUDE (is_missed, version), row_number() OVER (PARTITION BY photo_id
            ORDER BY is_missed AND status <> 'failed' AND hash(etag) = version DESC, {order} DESC) AS nth
        FROM (
            SELECT *, first_value({_MISSED}) OVER newest AS is_missed, first_value(hash(etag)) OVER newest AS version,
                row_number() OVER newest = 1 AS is_newest
            FROM ({rows}) WINDOW newest AS (PARTITION BY photo_id ORDER BY {order} DESC))"""


SUPERSEDED = f"""
CREATE TABLE internal.superseded AS
WITH again AS (
    -- Whatever the largest run has, only photos that another has too can have a newer row: what is kept at a time grows
    -- with the other runs, and DuckDB spills it.
    SELECT photo_id, run_id, etag, status, error_code, run_index FROM history JOIN internal.run_order USING (run_id)
    SEMI JOIN (SELECT DISTINCT photo_id FROM history WHERE run_id <> $largest_run) USING (photo_id)
)
SELECT photo_id, run_id, is_newest FROM ({shown_first("FROM again", "run_index")}) WHERE nth > 1
"""
"""Makes the table of rows that don't stand for their photo; needs `history`, `run_order` and the run with most rows."""

NONE_SUPERSEDED = "CREATE TABLE internal.superseded (photo_id BLOB, run_id VARCHAR, is_newest BOOLEAN)"
"""Makes the same table where there is but one run."""

MISSED = f"""
CREATE TABLE internal.missed AS
SELECT photo_id, error_code AS {schema.LAST_ERROR_CODE}, error_message AS {schema.LAST_ERROR_MESSAGE},
    processed_at AS {schema.LAST_TRIED_AT}
FROM history SEMI JOIN (FROM internal.superseded WHERE is_newest) USING (photo_id, run_id)
"""
"""Makes the table of newest rows that don't stand for their photo, as they failed to be fetched; needs `superseded`."""
