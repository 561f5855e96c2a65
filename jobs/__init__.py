"""Command lines, one per thing a user does: each parses its settings, calls the layers below and tells the truth in its
exit code (0 done, 1 stopped, 2 usage, 3 finished with too many failures)."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

import tyro

from pipeline import logs
from pipeline.code_version import NodeError
from pipeline.schema import printable

Settings = TypeVar("Settings")
_STOPPED = "stopped: run the same command again to go on where it stopped"

log = logging.getLogger(__name__)


def run_command(settings_type: type[Settings], run: Callable[[Settings], int]) -> NoReturn:
    """Parse the command line, call `run` and exit with its code; a `ValueError` is the user's mistake: exit 2.

    SIGTERM, which schedulers and `ray job stop` send, stops as Ctrl-C does: the lease is given back, exit 1.
    """
    logs.configure()
    settings = tyro.cli(settings_type)
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
            # Ray's library, interrupted in its own code, would abort the process on its way out.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        code = 1
    except Exception:
        if not asked:
            raise
        _tell(_STOPPED)  # DuckDB makes an error of its own of what interrupts its reading of a file
        code = 1
    sys.exit(code)


def _tell(text: str) -> None:
    """Say a last word to the user; where the log is for machines, as one of its lines."""
    if logs.is_json():
        log.error("%s", text)
    else:
        print(text, file=sys.stderr)
