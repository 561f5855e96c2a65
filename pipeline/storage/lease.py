"""One run at a time writes to an output, and only the run that has the output can commit what it did.

`OUTPUT/lease.json` names the holder. Every change of it is a conditional put, so of several claimants one wins. The
holder renews it; one that has not for `seconds` is taken for dead, judged by what the claimant saw with its own clock,
not by the clocks of two machines. A commit is itself such a change of the lease, with the run's record in it, and the
record's own file is written after it: a holder that slept through its end cannot commit any more, and one that died
between the two is finished by whoever comes next.

Each holder has a number, its epoch, that is higher than that of every holder before it. It stands in the name of every
object that the holder writes, so that nobody overwrites what another wrote, and it is the sequence number of the run
that the holder commits. `sweep` has the rules of who may remove what.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from pipeline import schema, storage

log = logging.getLogger(__name__)

FILE = "lease.json"
_RENEWALS = 3
"""Renewals in the time after which a silent holder is taken for dead."""
_LOST_SIGNAL = signal.SIGUSR2
"""Not SIGINT, which a command that was started with `&` ignores, and not SIGUSR1, which is the watchdog's."""


@dataclass(frozen=True)
class LeaseSettings:
    """How an output is kept for one run.

    Attributes:
        seconds: a holder that has not been heard of for so long is taken for dead.
    """

    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.seconds < 1:
            raise ValueError(f"--lease.seconds {self.seconds:g}: give at least 1")


class Ledger(Protocol):
    """Where what holders commit is entered: all that a lease knows of the output that it keeps.

    A commit is a JSON document that names what it commits as `run_id`, and its holder's epoch as `sequence`.
    """

    def enter(self, commit: dict[str, Any]) -> None:
        """Put a commit in its place, which makes it count, unless it is there already."""

    def has(self, commit: dict[str, Any], epoch: int) -> bool:
        """Whether the commit of the holder of that epoch is entered, or was and has been let go of."""

    def highest_epoch(self) -> int:
        """Return the highest epoch that anything at the output names, 0 where nothing does."""

    def remove_temporaries(self) -> None:
        """Remove what killed holders have left where the holder alone puts anything."""


class LeaseHeldError(ValueError):
    """Another run has the output."""


class LeaseLostError(Exception):
    """Another run has taken the output meanwhile: this one must not go on."""


class CommitUnknownError(Exception):
    """The store did not say whether the run was committed: nothing may be removed, and the next start finds out."""


def _seconds_since_boot() -> float:
    """Return a clock that goes on while the machine is suspended, where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class _State:
    """What `lease.json` says; `host` and `process` are empty when nobody has the output.

    `epoch` counts holders, `nonce` makes each change unlike any other, `commit` is a run's record on its way.
    """

    epoch: int
    nonce: str
    host: str = ""
    process: str = ""
    run_id: str = ""
    since: str = ""
    seconds: float = 0.0
    commit: dict[str, Any] | None = None

    @property
    def is_free(self) -> bool:
        return not self.process

    @property
    def holder(self) -> str:
        return schema.printable(f"run {self.run_id} of process {self.process.split(' ')[0]} on {self.host}")


class Lease:
    """A held lease: renewed in the background until it is released."""

    def __init__(self, output: str, state: _State, version: str, ledger: Ledger | None) -> None:
        self._output, self._state, self._version, self._ledger = output, state, version, ledger
        self._changing = threading.Lock()
        self._renewed_s = _seconds_since_boot()
        self.lost = threading.Event()
        """Set once it is known that another run has the output."""
        self._finished = threading.Event()
        self._interrupts = threading.current_thread() is threading.main_thread()  # which alone gets signals
        if self._interrupts:
            self._handler_before = signal.signal(_LOST_SIGNAL, signal.default_int_handler)
        self._keeper = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._keeper.start()

    @property
    def epoch(self) -> int:
        """Numbers this holder among all that the output has had, and the run that it commits among all runs."""
        return self._state.epoch

    @property
    def age_s(self) -> float:
        """How long ago the lease was last renewed."""
        return _seconds_since_boot() - self._renewed_s

    @property
    def renewal_interval_s(self) -> float:
        """How long a holder waits from one renewal to the next."""
        return self._state.seconds / _RENEWALS

    def check(self) -> None:
        """Raise LeaseLostError if another run has the output by now, as far as is known."""
        if self.lost.is_set():
            raise LeaseLostError(
                f"another run has taken {self._output}: this one stopped without publishing. Run the same command again"
            )

    def prove(self, within_s: float = 0.0) -> None:
        """Renew the lease, unless that was done within the last `within_s` seconds.

        Raises LeaseLostError if another run has the output, and OSError where the store does not answer.
        """
        self.check()
        if self.age_s >= within_s:
            self._change()

    def check_store(self) -> None:
        """Raise ValueError where the store puts what it should have refused: nothing would keep two runs apart."""
        with contextlib.suppress(FileExistsError):
            storage.create_bytes(_uri(self._output), uuid.uuid4().bytes)
            raise ValueError(f"the store of {self._output} knows no conditional puts: use one that does (S3 has them)")

    def name_run(self, run_id: str) -> None:
        """Say in the lease which run it is for."""
        self._change(run_id=run_id)

    def commit(self, record: dict[str, Any]) -> None:
        """Let a run count: enter its record, a commit as `Ledger` says, and put it in the lease first.

        Raises LeaseLostError if another run has the output and this one does not count, and CommitUnknownError where
        the store did not say. In all other cases the run counts, whoever has the output by now.
        """
        assert self._ledger is not None
        try:
            self._change(commit=record)
        except LeaseLostError:
            # The put may have been done though its answer was lost. Then whoever took the output over from us has put
            # the record before that, as it had found it in the lease.
            if not self._is_recorded(record):
                raise
            log.warning("another run took %s over during this run's commit, and completed it", self._output)
            return
        except OSError as error:
            raise CommitUnknownError(
                f"{self._output}: the store did not say whether this run's commit was stored ({error}). Nothing is"
                " lost: run the same command again, which finds out and goes on from there"
            ) from error
        try:
            self._ledger.enter(record)
        except OSError as error:
            raise CommitUnknownError(
                f"{self._output}: this run is committed, but its record could not be written ({error}). Run the same"
                " command again, which writes it"
            ) from error
        with contextlib.suppress(LeaseLostError, OSError):  # the run counts, whatever becomes of the lease
            self._change(commit=None)

    def release(self) -> None:
        """Let the next one in at once."""
        self._finished.set()
        self._keeper.join()
        if self._interrupts:
            signal.signal(_LOST_SIGNAL, self._handler_before)
        if not self.lost.is_set():
            with contextlib.suppress(LeaseLostError, OSError):
                self._change(host="", process="", run_id="", since="")

    def _is_recorded(self, record: dict[str, Any]) -> bool:
        """Whether the run's own record, or the note that retention let the run go, is in its place."""
        assert self._ledger is not None
        try:
            return self._ledger.has(record, self.epoch)
        except OSError as error:
            raise CommitUnknownError(
                f"{self._output}: another run has it, and the store does not say whether this run was committed"
                f" ({error}). Run the same command again, which finds out"
            ) from error

    def _change(self, **changes: Any) -> None:
        with self._changing:
            self.check()
            self._replace(**changes)

    def _replace(self, **changes: Any) -> None:
        state = replace(self._state, nonce=uuid.uuid4().hex, **changes)
        try:
            self._version = storage.replace_bytes(_uri(self._output), _encoded(state), self._version)
        except storage.ChangedError:
            self.lost.set()
            self.check()
        self._state, self._renewed_s = state, _seconds_since_boot()

    def _keep(self) -> None:
        while not self._finished.wait(self.renewal_interval_s):
            with self._changing:
                if self.lost.is_set():  # as the main thread has found out by itself
                    return
                try:
                    self._replace()
                except LeaseLostError:
                    if self._interrupts:  # what runs in the main thread, maybe for days, is of no use any more
                        signal.pthread_kill(threading.main_thread().ident or 0, _LOST_SIGNAL)
                    return
                except OSError as error:
                    log.warning("the lease of %s could not be renewed for %.0f s: %s", self._output, self.age_s, error)


@contextlib.contextmanager
def held(output: str, run_id: str, settings: LeaseSettings, ledger: Ledger | None = None) -> Iterator[Lease]:
    """Hold the output's lease; LeaseHeldError, naming the holder, where another run has it.

    Without a ledger nothing can be committed, and nothing at the output numbers its holders: `records.held` has one.

    A holder on this machine whose process is gone is followed at once, any other silent one after its time.
    """
    lease = _acquire(output, run_id, settings, ledger)
    try:
        lease.check_store()
        if ledger is not None:
            ledger.remove_temporaries()
        yield lease
    except (KeyboardInterrupt, Exception):
        lease.check()  # its loss may be why: it interrupts, and what DuckDB makes of that is an error of its own
        raise
    finally:
        lease.release()


def _acquire(output: str, run_id: str, settings: LeaseSettings, ledger: Ledger | None) -> Lease:
    uri = _uri(output)
    mine = _State(
        epoch=0,
        nonce=uuid.uuid4().hex,
        host=socket.gethostname(),
        process=_this_process(),
        run_id=run_id,
        since=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        seconds=settings.seconds,
    )
    while True:
        try:
            found = storage.read_version(uri)
        except FileNotFoundError:
            # A new output, or one whose `lease.json` somebody has removed.
            mine = replace(mine, epoch=1 + (0 if ledger is None else ledger.highest_epoch()))
            with contextlib.suppress(FileExistsError):
                return Lease(output, mine, storage.create_bytes(uri, _encoded(mine)), ledger)
            continue
        state = _decoded(uri, found.data)
        if not state.is_free and not _is_dead(state):
            _wait_for_silence(uri, found.etag, state)
            log.warning("%s has not been heard of for %g s: taking over", state.holder, state.seconds)
        if state.commit is not None:
            log.warning("finishing what run %s was about to commit", schema.printable(str(state.commit["run_id"])))
            assert ledger is not None, uri
            ledger.enter(state.commit)
        mine = replace(mine, epoch=state.epoch + 1)
        with contextlib.suppress(storage.ChangedError):
            return Lease(output, mine, storage.replace_bytes(uri, _encoded(mine), found.etag), ledger)


def _wait_for_silence(uri: str, version: str, state: _State) -> None:
    """Return once the lease has stayed as it is for its time; LeaseHeldError as soon as its holder shows up."""
    if _is_here(state):  # and not dead
        raise _held_error(uri, state)
    log.info("%s has the output since %s: waiting whether it is alive", state.holder, state.since)
    deadline_s = _seconds_since_boot() + state.seconds
    while (left_s := deadline_s - _seconds_since_boot()) > 0:
        time.sleep(min(left_s, state.seconds / _RENEWALS / 4))
        try:
            found = storage.read_version(uri)
        except FileNotFoundError:
            return
        if found.etag != version:
            newer = _decoded(uri, found.data)
            if newer.is_free:
                return
            raise _held_error(uri, newer)


def _held_error(uri: str, state: _State) -> LeaseHeldError:
    return LeaseHeldError(
        f"{state.holder} has {uri.removesuffix('/' + FILE)} since {state.since} and is alive: wait until it has "
        "finished, or stop it first"
    )


def _this_process() -> str:
    """Return this process's number, then what tells it from every other of that number: its start and its machine."""
    return f"{os.getpid()} {_started(os.getpid())} {_machine()}"


def _machine() -> str:
    """Return what names this boot of this machine and this container on it; "" where that can't be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot; "" if there is none (or only its corpse)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_here(state: _State) -> bool:
    """Whether the holder's process is (or was) on this machine, so that it can be looked at."""
    return _machine() != "" and state.process.rsplit(" ", 1)[1] == _machine()


def _is_dead(state: _State) -> bool:
    pid, started, _ = state.process.split(" ", 2)
    return _is_here(state) and _started(int(pid)) != started


def _uri(output: str) -> str:
    return storage.join(output, FILE)


def _encoded(state: _State) -> bytes:
    return json.dumps(asdict(state), indent=2).encode()


def _decoded(uri: str, data: bytes) -> _State:
    try:
        return _State(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{uri} is no lease ({error}): remove it if no run is writing there") from error
