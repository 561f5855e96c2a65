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

from pipeline.code_version import NodeError
from pipeline.schema import printable

Settings = TypeVar("Settings")


class _PrintableLines(logging.Formatter):
    """One line a message, whatever name of a file is in it: no faked lines, no escape sequences for the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


def run_command(settings_type: type[Settings], run: Callable[[Settings], int]) -> NoReturn:
    """Parse the command line, call `run` and exit with its code; a `ValueError` is the user's mistake: exit 2.

    SIGTERM, which schedulers and `ray job stop` send, stops as Ctrl-C does: the lease is given back, exit 1.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where it found credentials, again and again
    settings = tyro.cli(settings_type)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = run(settings)
    except ValueError as error:
        print("error: " + "\n".join(printable(line) for line in str(error).split("\n")), file=sys.stderr)
        code = 2
    except NodeError as error:
        print("error: " + printable(str(error)), file=sys.stderr)
        code = 1
    except (KeyboardInterrupt, SystemExit) as stop:
        is_terminated = isinstance(stop, SystemExit) and stop.code == signal.SIGTERM  # what Ray's handler exits with
        if isinstance(stop, SystemExit) and not is_terminated:
            raise
        print("stopped: run the same command again to go on where it stopped", file=sys.stderr)
        if is_terminated:
            # Ray's library, interrupted in its own code, would abort the process on its way out.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        code = 1
    sys.exit(code)
