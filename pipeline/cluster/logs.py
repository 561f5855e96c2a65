"""What log lines look like, in the driver and in every worker process: text for people, or one JSON object a line."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TextIO

from pipeline.schema import printable

LogFormat = Literal["text", "json"]
DRIVER = "driver"
_FORWARD_LIMIT_S = 1.0
_OURS = ("jobs", "model", "pipeline", "training")


@dataclass
class _Process:
    """What every line of this process says; a process does one stage's task at a time, whichever thread logs."""

    format: LogFormat = "text"
    run_id: str = ""
    stage: str = DRIVER


_process = _Process()


@dataclass(frozen=True)
class WorkerLogs:
    """How a run's worker processes log: as its driver does, and with its name."""

    format: LogFormat = "text"
    run_id: str = ""

    def enter(self, stage: str) -> None:
        """Let this worker process log as one of this run, at `stage`, from now on.

        Libraries' lines only from warnings on, as before: some tell where they found credentials.
        """
        is_new = _process.stage == DRIVER
        _process.format, _process.run_id, _process.stage = self.format, self.run_id, stage
        if is_new:
            _handle(logging.WARNING)
            for name in _OURS:
                logging.getLogger(name).setLevel(logging.INFO)


class _Lines(logging.Formatter):
    """One line a message, whatever name of a file is in it: no faked lines, no escape sequences for the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        if _process.format == "json":
            return json_line(record)
        if _process.stage == DRIVER:
            return super().format(record)
        return f"{super().format(record)} [run {_process.run_id}, {_process.stage}]"


def json_line(record: logging.LogRecord) -> str:
    """Return a record as one JSON object in one line; of an exception, its traceback too."""
    line = {
        "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "message": printable(record.getMessage()),
        "run_id": _process.run_id,
        "stage": _process.stage,
        "node": socket.gethostname(),
    }
    if record.exc_info:
        line["exception"] = logging.Formatter().formatException(record.exc_info)
    return json.dumps(line, ensure_ascii=False)


def configure() -> None:
    """Let this process, a driver, log to standard error, as text until `use_format` says otherwise."""
    _handle(logging.INFO)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where it found credentials, again and again


def use_format(chosen: LogFormat) -> None:
    """Log as `chosen` from now on, also what libraries write to the terminal by handlers of their own.

    Call it again after a library has made itself some, as Ray does when it starts.
    """
    _process.format = chosen
    if chosen == "text":
        return
    for logger in list(logging.root.manager.loggerDict.values()):
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setFormatter(_formatter())


def name_run(run_id: str) -> None:
    """Say in every line from now on which run it is about."""
    _process.run_id = run_id


def is_json() -> bool:
    """Return whether this process logs as JSON."""
    return _process.format == "json"


def for_workers() -> WorkerLogs:
    """Return how this driver's worker processes are to log."""
    return WorkerLogs(_process.format, _process.run_id)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to whatever is standard error when a line comes: a line of progress that changes puts itself there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


@contextlib.contextmanager
def without_native_lines(unwanted: re.Pattern[bytes]) -> Iterator[None]:
    """Within its body, keep lines that native code writes to standard error, past Python, from the user if they match.

    What Python writes there goes its own way, and is never held up.
    """
    ours = sys.stderr
    try:
        native_fd = ours.fileno()
    except OSError:  # a test's, which is no file
        yield
        return
    ours.flush()
    real_fd = os.dup(native_fd)
    read_fd, write_fd = os.pipe()

    def forward() -> None:
        with open(read_fd, "rb") as lines:
            for line in lines:
                if not unwanted.search(line):
                    os.write(real_fd, line)

    forwarder = threading.Thread(target=forward, name="native lines", daemon=True)
    with open(real_fd, "w", buffering=1, encoding=ours.encoding, errors=ours.errors, closefd=False) as direct:
        sys.stderr = direct
        os.dup2(write_fd, native_fd)
        os.close(write_fd)
        forwarder.start()
        try:
            yield
        finally:
            sys.stderr = ours
            os.dup2(real_fd, native_fd)  # which ends the pipe, unless a child process has it, too
            forwarder.join(_FORWARD_LIMIT_S)
    if not forwarder.is_alive():
        os.close(real_fd)


def _handle(level: int) -> None:
    handler = _StandardError()
    handler.setFormatter(_formatter())
    logging.basicConfig(level=level, handlers=[handler])


def _formatter() -> logging.Formatter:
    return _Lines("%(asctime)s %(levelname)s %(name)s: %(message)s")
