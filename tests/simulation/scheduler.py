"""Actors that take turns: one runs at a time, and at each of its steps a seeded scheduler decides what happens next.

An actor is a thread; several may be of one process, which can be stopped for a while (a laptop that sleeps, SIGSTOP) or
killed. Time is virtual: it passes by a little with each step, and jumps where everybody sleeps.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class Killed(BaseException):
    """What a process that is killed gets at its next step."""


@dataclass
class Process:
    """Some actors that sleep and die together."""

    name: str
    asleep_until_s: float = 0.0
    is_killed: bool = False
    steps: int = 0


@dataclass
class Actor:
    """One thread of a process; `may_run` is asked before each of its turns, `interrupt` is raised at its next step."""

    process: Process
    name: str
    wake_s: float = 0.0
    may_run: Callable[[], bool] = lambda: True
    deadline_s: float = float("inf")
    interrupt: bool = False
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_done: bool = False
    error: BaseException | None = None


@dataclass(frozen=True)
class Chances:
    """How likely it is, at any step, that a process is stopped or killed; and for how long it is stopped at most."""

    stop: float = 0.02
    kill: float = 0.004
    longest_stop_s: float = 30.0
    step_s: float = 0.2


class StuckError(Exception):
    """Nobody can go on: a fault of the simulation or a deadlock of what is simulated."""


class Scheduler:
    """Runs actors one at a time until all are done."""

    def __init__(self, seed: int, chances: Chances) -> None:
        self.random = random.Random(seed)
        self.now_s = 1000.0
        self.trace: list[str] = []
        self._chances = chances
        self._actors: list[Actor] = []
        self._current: Actor | None = None
        self._back = threading.Semaphore(0)
        self.is_calm = False
        self.after_step: Callable[[], None] = lambda: None

    def start(self, process: Process, name: str, run: Callable[[], object]) -> Actor:
        """Let a new actor run, in a thread of its own, as soon as it is its turn."""
        actor = Actor(process, name)

        def body() -> None:
            actor.turn.acquire()
            try:
                if not process.is_killed:
                    run()
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 - the simulation decides what to make of it
                actor.error = error
            finally:
                actor.is_done = True
                self._back.release()

        self._actors.append(actor)
        threading.Thread(target=body, name=f"{process.name} {name}", daemon=True).start()
        return actor

    @property
    def current(self) -> Actor | None:
        """The actor whose turn it is, where the calling thread is an actor's."""
        actor = self._current
        return actor if actor and threading.current_thread().name == f"{actor.process.name} {actor.name}" else None

    def step(self, what: str) -> None:
        """Let others go first; raises what has happened to the calling actor meanwhile."""
        actor = self.current
        if actor is None:  # a thread of DuckDB's
            return
        self._wait(actor)
        self.trace.append(f"{self.now_s:8.1f} {actor.process.name} {actor.name}: {what}")
        actor.process.steps += 1
        if actor.interrupt:
            actor.interrupt = False
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        actor = self.current
        assert actor is not None
        actor.wake_s = self.now_s + seconds
        self._wait(actor)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until something holds, or the time is over; return whether it holds."""
        actor = self.current
        assert actor is not None
        actor.may_run = condition
        actor.deadline_s = float("inf") if timeout_s is None else self.now_s + timeout_s
        self._wait(actor)
        actor.may_run, actor.deadline_s = (lambda: True), float("inf")
        return condition()

    def _wait(self, actor: Actor) -> None:
        self._back.release()
        actor.turn.acquire()
        if actor.process.is_killed:
            raise Killed

    def run(self) -> None:
        """Give turns until every actor is done."""
        while True:
            living = [actor for actor in self._actors if not actor.is_done]
            if not living:
                return
            if all(actor.name == "lease" for actor in living):  # keepers of processes that have ended
                for actor in living:
                    actor.process.is_killed = True
            ready = [actor for actor in living if actor.process.is_killed or self._is_ready(actor)]
            if not ready:
                self._pass_time(living)
                continue
            actor = self.random.choice(ready)
            self._current = actor
            actor.turn.release()
            self._back.acquire()
            self._current = None
            self.now_s += self.random.random() * self._chances.step_s
            self.after_step()
            if not self.is_calm:
                self._disturb(actor.process)

    def _is_ready(self, actor: Actor) -> bool:
        if max(actor.process.asleep_until_s, actor.wake_s) > self.now_s:
            return False
        return self.now_s >= actor.deadline_s or actor.may_run()

    def _pass_time(self, living: list[Actor]) -> None:
        def next_s(actor: Actor) -> float:
            own_s = max(actor.wake_s, min(actor.deadline_s, self.now_s if actor.may_run() else float("inf")))
            return max(own_s, actor.process.asleep_until_s)

        soonest_s = min(map(next_s, living))
        if soonest_s == float("inf"):
            raise StuckError(", ".join(f"{actor.process.name} {actor.name}" for actor in living))
        self.now_s = max(soonest_s, self.now_s + 1e-6)

    def _disturb(self, process: Process) -> None:
        chance = self.random.random()
        if chance < self._chances.kill:
            process.is_killed = True
            self.trace.append(f"{self.now_s:8.1f} {process.name}: killed")
        elif chance < self._chances.kill + self._chances.stop:
            seconds = self.random.random() * self._chances.longest_stop_s
            process.asleep_until_s = self.now_s + seconds
            self.trace.append(f"{self.now_s:8.1f} {process.name}: sleeps {seconds:.1f} s")


class Lock:
    """A lock whose waiting is a turn's end, for `threading.Lock`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._owner = scheduler, None

    def __enter__(self) -> None:
        while self._owner is not None:
            self._scheduler.wait_for(lambda: self._owner is None, None)
        self._owner = self._scheduler.current  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        self._owner = None


class Event:
    """An event whose waiting is a turn's end, for `threading.Event`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._is_set = scheduler, False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        return self._scheduler.wait_for(self.is_set, timeout)


class Thread:
    """A further actor of the calling actor's process, for `threading.Thread`."""

    def __init__(self, scheduler: Scheduler, target: Callable[[], object], name: str, daemon: bool) -> None:
        assert daemon
        self._scheduler, self._target, self._name = scheduler, target, name

    def start(self) -> None:
        current = self._scheduler.current
        assert current is not None
        self._actor = self._scheduler.start(current.process, self._name, self._target)

    def join(self) -> None:
        self._scheduler.wait_for(lambda: self._actor.is_done, None)


def as_threading(scheduler: Scheduler) -> Any:
    """Return what stands for the module `threading`."""
    return SimpleNamespace(
        Lock=lambda: Lock(scheduler),
        Event=lambda: Event(scheduler),
        Thread=lambda target, name, daemon: Thread(scheduler, target, name, daemon),
        current_thread=lambda: scheduler.current,
        main_thread=lambda: SimpleNamespace(ident=scheduler.current and scheduler.current.process),
    )


def as_time(scheduler: Scheduler) -> Any:
    """Return what stands for the module `time`."""
    return SimpleNamespace(monotonic=lambda: scheduler.now_s, sleep=scheduler.sleep)
