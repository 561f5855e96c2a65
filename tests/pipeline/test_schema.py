"""The columns' own rules: documented once, closed sets closed, every hand-over a part of what is stored."""

from __future__ import annotations

import pickle

import pyarrow as pa

from pipeline import schema
from pipeline.schema import ErrorCode, PhotoError


def test_every_stored_column_says_what_it_holds() -> None:
    for field in (*schema.PHOTOS, *schema.LAST_TRY):
        assert field.metadata[b"doc"], field.name


def test_the_set_of_error_codes_is_the_contract() -> None:
    assert {str(code) for code in ErrorCode} == {
        *("not_found", "forbidden", "fetch_timeout", "fetch_failed", "empty", "too_large", "unsupported_format"),
        *("truncated", "corrupt", "decoder_crashed", "decoder_timeout", "model_failed", "not_a_photo"),
    }
    assert set(schema.TRANSIENT_ERRORS) == {"not_found", "fetch_timeout", "fetch_failed"}
    assert set(schema.FETCH_ERRORS) == {*schema.TRANSIENT_ERRORS, "forbidden"}


def test_what_the_reader_hands_on_has_the_types_that_are_stored() -> None:
    for field in schema.READ:
        if field.name not in (schema.PIXELS_HWC, schema.FETCH_SECONDS, schema.DECODE_SECONDS):
            assert field.equals(schema.PHOTOS.field(field.name)), field.name
    for field in schema.MANIFEST:
        if field.name in schema.PHOTOS.names:
            assert field.type == schema.PHOTOS.field(field.name).type


def test_geometry_is_marked_as_geoarrow() -> None:
    metadata = schema.PHOTOS.field(schema.GEOMETRY).metadata
    assert metadata[b"ARROW:extension:name"] == b"geoarrow.wkb"


def test_photo_id_is_a_stable_function_of_the_uri() -> None:
    assert schema.photo_id("s3://b/ü.jpg").hex() == "c77888c8f7d8771e1121ddfdab079a6d"
    assert schema.photo_id("a") != schema.photo_id("b")


def test_an_error_survives_pickling_between_processes() -> None:
    error = pickle.loads(pickle.dumps(PhotoError(ErrorCode.CORRUPT, "bad block")))
    assert (error.code, error.message) == (ErrorCode.CORRUPT, "bad block")


def test_messages_are_short_and_storable_whatever_a_file_is_called() -> None:
    error = PhotoError(ErrorCode.NOT_FOUND, "not found: a\nb\udcff\x1b[31m" + "x" * 1000)
    assert error.message.startswith("not found: a\\nb\\udcff\\x1b[31mx")
    assert len(error.message) == schema.MAX_ERROR_MESSAGE_CHARS
    pa.array([error.message], pa.string()).validate(full=True)
