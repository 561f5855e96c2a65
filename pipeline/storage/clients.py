"""The two clients of object stores, obstore and boto3, made of the environment; their errors as Python's own."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.exceptions
import obstore.exceptions
from botocore.config import Config as BotoConfig
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store, from_url

FETCH_TIMEOUT = dt.timedelta(seconds=30)
RETRY_BUDGET = dt.timedelta(seconds=60)
_CREDENTIALS_HELD = dt.timedelta(minutes=10)
"""So long obstore keeps what boto3 gives it, which has ten minutes left at least: nothing is used that has expired."""
_MAX_RETRIES = 15
_BACKOFF = {"init_backoff": dt.timedelta(seconds=0.25), "max_backoff": dt.timedelta(seconds=5), "base": 2}
_TRIED_AGAIN = (408, 425, 429)
"""Of the HTTP statuses 4xx, those that say: not now."""
_OF_THE_OBJECT = {
    403: ("", "403", "Forbidden", "AccessDenied", "InvalidObjectState", "AuthorizationPermissionMismatch"),
    404: ("", "404", "Not Found", "NoSuchKey", "NoSuchVersion", "BlobNotFound", "PathNotFound"),
}
"""Codes of S3, Google and Azure that these statuses come with where they speak of the object that was asked for.

Any other, such as RequestTimeTooSkewed or NoSuchBucket, is about the credentials, the clock, the account or the bucket.
"" and the status itself are those of answers without a body, as to HEAD.
"""
_REFUSALS_ANSWER = re.compile(r"status code: (\d{3}) ?([^:\n]*)(.*)", re.DOTALL)
_CODE = re.compile(r'<Code>\s*([\w.-]{1,80})\s*</Code>|"(?:reason|code|error)":\s*"([\w.-]{1,80})"')
"""The store's own code, in the XML of S3, Google and Azure or in the JSON of some of their services."""
_REDIRECTED = "Received redirect without LOCATION"
_ASKER_REFUSED = "credentials, clock or account are refused, not this object"


class RefusedError(OSError):
    """The store answers, and won't give this however often it is asked."""


class AskerRefusedError(PermissionError):
    """The store refuses whoever asks: the credentials, the clock or the account. It says nothing of the object."""


class NoBucketError(FileNotFoundError):
    """There is no such bucket, or nothing that is one: it says nothing of the object."""


class NoCredentialsError(ValueError):
    """The environment names no credentials at all."""


@contextlib.contextmanager
def builtin_errors(uri: str) -> Iterator[None]:
    """Turn both S3 clients' errors into Python's own, with one clear sentence that holds the store's own code."""
    try:
        yield
    except FileNotFoundError as error:  # obstore's, with the server's whole answer in it
        raise _answered_in(str(error), uri) or FileNotFoundError(f"not found: {uri}") from error
    except botocore.exceptions.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        http_status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        no_such_name = http_status == 400 and code in ("400", "InvalidURI", "KeyTooLongError", "InvalidObjectName")
        if code == "InvalidBucketName" or no_such_name:
            raise FileNotFoundError(f"not found ({code}): {uri}") from error
        raise _store_error(http_status, code, f"{code}, {http_status}", uri) from error
    except (botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError) as error:
        raise TimeoutError(f"no answer in time: {uri}") from error
    except botocore.exceptions.ParamValidationError as error:  # an empty key, characters that no bucket has
        raise FileNotFoundError(f"no object can have this name: {uri}") from error
    except botocore.exceptions.BotoCoreError as error:
        raise OSError(f"{error}: {uri}") from error
    except obstore.exceptions.BaseError as error:
        text = str(error)
        reason = text.split("\n", 1)[0]
        if "timed out" in text or "kind: Timeout" in text:
            raise TimeoutError(f"no answer in time: {uri}: {reason}") from error
        if _REDIRECTED in reason:
            message = f"PermanentRedirect, a redirect to nowhere: is AWS_REGION the region of the bucket? {uri}"
            raise RefusedError(message) from error
        answer = _answered_in(text, uri)
        if isinstance(error, obstore.exceptions.PermissionDeniedError):
            raise answer or PermissionError(f"permission denied: {uri}") from error
        if isinstance(answer, PermissionError | FileNotFoundError):  # of the server that gives credentials
            raise AskerRefusedError(f"{_ASKER_REFUSED}: {uri}: {reason}") from error
        if answer:
            raise answer from error
        raise OSError(f"{reason}: {uri}") from error


def _answered_in(text: str, uri: str) -> OSError | None:
    """Return the error for the answer that the text of an error of obstore's holds, if it holds one."""
    answer = _REFUSALS_ANSWER.search(text)
    if answer is None:
        return None
    said = f"{answer[1]} {answer[2]}"
    found = _CODE.search(answer[3])
    code = (found[1] or found[2]) if found else ""
    return _store_error(int(answer[1]), code, f"{code}, {said}" if code else said, uri)


def _store_error(http_status: int, code: str, said: str, uri: str) -> OSError:
    """Return the error for a store's answer with this HTTP status and code, `said` in words."""
    if http_status == 404:
        if code in _OF_THE_OBJECT[404]:
            return FileNotFoundError(f"not found ({said}): {uri}")
        return NoBucketError(f"not found ({said}), and not for want of this object: {uri}")
    if http_status == 403 and code in _OF_THE_OBJECT[403]:
        return PermissionError(f"permission denied ({said}): {uri}")
    if http_status in (401, 403):
        return AskerRefusedError(f"{said}: {_ASKER_REFUSED}: {uri}")
    return answered(http_status, f"{said}: {uri}")


def answered(http_status: int, message: str) -> OSError:
    """Return the error for an answer with this HTTP status: RefusedError, or one that may be of the moment."""
    is_final = 300 <= http_status < 500 and http_status not in _TRIED_AGAIN
    return RefusedError(message) if is_final else OSError(message)


def _s3_session() -> tuple[boto3.Session, str]:
    """Return a session with the environment's credentials, and the region; NoCredentialsError where there are none."""
    session = boto3.Session()
    if session.get_credentials() is None:
        raise NoCredentialsError(
            "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or use an instance role"
        )
    return session, os.environ.get("AWS_REGION") or session.region_name or "us-east-1"


def s3_options(silence_s: float | None = None) -> dict[str, Any]:
    """Return what makes an S3Store of the environment's; with `silence_s` as `store`."""
    session, region = _s3_session()
    options: dict[str, Any] = {"region": region, **_client_options(silence_s)}
    options["client_options"]["allow_http"] = True
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["endpoint"] = endpoint
    options["credential_provider"] = Boto3CredentialProvider(session, ttl=_CREDENTIALS_HELD)
    return options


def _client_options(silence_s: float | None) -> dict[str, Any]:
    """Return obstore's options: to try again itself, or to try once and wait for as long as bytes come."""
    waits: dict[str, Any] = {"connect_timeout": dt.timedelta(seconds=5), "timeout": FETCH_TIMEOUT}
    if silence_s is None:
        return {
            "client_options": waits,
            # obstore's own first wait of 0.1 s would have given up on a busy store after less than a second.
            "retry_config": {"max_retries": _MAX_RETRIES, "retry_timeout": RETRY_BUDGET, "backoff": _BACKOFF},
        }
    waits |= {"timeout": dt.timedelta(hours=1), "read_timeout": dt.timedelta(seconds=silence_s)}
    return {"client_options": waits, "retry_config": {"max_retries": 0}}


@functools.lru_cache(maxsize=64)
def store(bucket: str, silence_s: float | None = None) -> Any:
    """Return obstore's client of `scheme://bucket`: it tries again, or once where `silence_s` bounds each wait."""
    if bucket.startswith("s3://"):
        return S3Store(bucket.removeprefix("s3://"), **s3_options(silence_s))
    return from_url(bucket, **_client_options(silence_s))


@functools.lru_cache(maxsize=4)
def s3_client(silence_s: float | None = None) -> Any:
    """Return boto3's client, for keys that obstore can't address; `silence_s` as in `store`."""
    session, region = _s3_session()
    config = BotoConfig(
        connect_timeout=5,
        read_timeout=silence_s or FETCH_TIMEOUT.total_seconds(),
        # With botocore's waits, of up to 20 s, fewer make up the same time.
        retries={"mode": "standard", "max_attempts": 0 if silence_s else 3 * _MAX_RETRIES // 4},
        max_pool_connections=64,
    )
    return session.client("s3", region_name=region, config=config)
