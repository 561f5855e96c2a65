"""Command lines, one per thing a user does: each parses its settings, calls the layers below and tells the truth in its
exit code (0 done, 1 stopped, 2 usage, 3 finished with too many failures)."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from pipeline import logs
from pipeline.code_version import NodeError
from pipeline.schema import printable

Settings = TypeVar("Settings")


log = logging.getLogger(__name__)


def run_command(settings_type: type[Settings], run: Callable[[Settings], int]) -> NoReturn:
    """Parse the command line, call `run` and exit with its code; a `ValueError` is the user's mistake: exit 2.

    SIGTERM, which schedulers and `ray job stop` send, stops as Ctrl-C does: the lease is given back, exit 1.
    """
    logs.configure()
    settings = tyro.cli(settings_type)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = run(settings)
    except ValueError as error:
        _tell("error: " + "\n".join(printable(line) for line in str(error).split("\n")))
        code = 2
    except NodeError as error:
        _tell("error: " + printable(str(error)))
        code = 1
    except (KeyboardInterrupt, SystemExit) as stop:
        is_terminated = isinstance(stop, SystemExit) and stop.code == signal.SIGTERM  # what Ray's handler exits with
        if isinstance(stop, SystemExit) and not is_terminated:
            raise
        _tell("stopped: run the same command again to go on where it stopped")
        if is_terminated:
            # Ray's library, interrupted in its own code, would abort the process on its way out.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        code = 1
    sys.exit(code)


def _tell(text: str) -> None:
    """Say a last word to the user; where the log is for machines, as one of its lines."""
    if logs.is_json():
        log.error("%s", text)
    else:
        print(text, file=sys.stderr)
