"""Command lines, one per thing a user does: each parses its settings, calls the layers below and tells the truth in its
exit code (0 done, 1 stopped, 2 usage, 3 finished, but too many photos failed or not all could be listed)."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro

from pipeline.cluster import logs
from pipeline.cluster.code_version import NodeError
from pipeline.schema import printable

Settings = TypeVar("Settings")
_STOPPED = "stopped: run the same command again to go on where it stopped"

_NO_ROOM = "Free some room there"
_ADVICE = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "Raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "Make it writable",
    errno.EACCES: "Make it writable for this user",
    errno.EPERM: "Make it writable for this user",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENFILE: "Raise the system's limit of open files",
}
"""What to do about errors of a file system that are nobody's bug."""
_BROKEN_DISKS = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)

log = logging.getLogger(__name__)

typed_name: str | None = None
"""How the user called this job, where the file's name does not say it: see `jobs.graticule`."""


def run_command(
    settings_type: type[Settings],
    run: Callable[[Settings], int],
    defaults: Callable[[Sequence[str]], Settings] | None = None,
) -> NoReturn:
    """Parse the command line, call `run` and exit with its code; a `ValueError` is the user's mistake: exit 2.

    What a file system or store refuses, such as a full disk, is told in one line: exit 1. A bug keeps its traceback.

    `defaults`: the command line → the settings that stand where it says nothing, if they hang on what it says.

    SIGTERM, which schedulers and `ray job stop` send, stops as Ctrl-C does: the lease is given back, exit 1.
    """
    logs.configure()
    given: dict[str, Any] = {"default": defaults(sys.argv[1:])} if defaults else {}
    settings: Settings = tyro.cli(settings_type, prog=typed_name, **given)
    asked = False

    def stop_now(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, stop_now)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in a shell's background it is ignored
        signal.signal(signal.SIGINT, stop_now)
    try:
        code = run(settings)
    except ValueError as error:
        _tell("error: " + "\n".join(printable(line) for line in str(error).split("\n")))
        code = 2
    except NodeError as error:
        _tell("error: " + printable(str(error)))
        code = 1
    except (KeyboardInterrupt, SystemExit) as stop:
        is_terminated = isinstance(stop, SystemExit) and stop.code == signal.SIGTERM  # by Ray, as it starts
        if isinstance(stop, SystemExit) and not is_terminated:
            raise
        _tell(_STOPPED)
        if is_terminated:
            _exit_at_once(1)  # Ray's library, interrupted in its own code, would abort the process on its way out
        code = 1
    except Exception as error:
        if asked:
            _tell(_STOPPED)  # DuckDB makes an error of its own of what interrupts its reading of a file
        elif refusal := _refusal(error):
            _tell("error: " + printable(refusal))
        elif _is_busy():
            traceback.print_exc()
        else:
            raise
        code = 1
    if _is_busy():
        _exit_at_once(code)
    sys.exit(code)


def _is_busy() -> bool:
    """Return whether a thread is in native code that would abort the process on its way out."""
    local = sys.modules.get("pipeline.cluster.local_executor")  # where nobody has imported it, it has no threads
    return local is not None and local.is_busy()


def _exit_at_once(code: int) -> NoReturn:
    """End the process without its libraries' last words."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _refusal(error: Exception) -> str:
    """Say what a file system or store refused and what to do then; "" for what may be a bug."""
    notes = "".join(f"{note} " for note in getattr(error, "__notes__", ()))
    duckdb = sys.modules.get("duckdb")  # where nobody has imported it, it has raised nothing
    if duckdb and isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException):
        said = str(error).split("\n", 1)[0]
        advice = "Free some room in the temporary folder, or name another as TMPDIR"
    elif isinstance(error, OSError) and error.errno is None:  # `storage`'s, of an object store
        said, advice = str(error), "See that the store is there and takes the credentials"
    elif isinstance(error, OSError) and error.errno in (*_ADVICE, *_BROKEN_DISKS):
        said = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        advice = _ADVICE.get(error.errno, "See that the disk is there") if error.errno else ""
    else:
        return ""
    return f"{said}. {notes}{advice}, and run the same command again: what was written whole stays."


def _tell(text: str) -> None:
    """Say a last word to the user; where the log is for machines, as one of its lines."""
    if logs.is_json():
        log.error("%s", text)
    else:
        print(text, file=sys.stderr)
