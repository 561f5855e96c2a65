"""The Ray cluster that a run joins or starts: what it has, how work is divided, and whether every node can do it.

A node can when it runs the driver's code and sees what the run names. Nodes have no file system in common, unless the
user says so; then each is asked.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.cluster import logs
from pipeline.cluster.code_version import NodeError, check_code, code_version, mixed_code
from pipeline.cluster.flow import ClusterSize, NamedPath
from pipeline.storage import local_files

log = logging.getLogger(__name__)

_TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
_START_LIMIT_S = 180.0
"""A start of Ray takes some ten seconds; a busy machine may need several times that."""
_LEAST_ROOM_BYTES = 64 << 20
"""With less in the temporary folder Ray does not start, or not for long."""
_LOCKED_LIMIT_S = 10.0
"""After which a process that hangs and lets no thread end it is ended all the same."""
_ANSWER_LIMIT_S = 180.0
"""In which a node must have started a process and, where the job was submitted, fetched its working directory."""


@dataclass(frozen=True)
class Driver:
    """What each process of a run must have in common with its driver, on nodes that join after the start, too.

    `code` is the driver's `code_version`; `node` is its node, where that alone sees the local paths that the run uses.
    """

    code: str
    node: str | None

    @classmethod
    def here(cls, uses_local_paths: bool) -> Driver:
        """Return what to have in common with this process, which has joined its cluster."""
        return cls(code_version(), ray.get_runtime_context().get_node_id() if uses_local_paths else None)

    def check(self) -> None:
        """Raise NodeError where this process has not."""
        check_code(self.code)
        if self.node is not None and ray.get_runtime_context().get_node_id() != self.node:
            raise NodeError(
                f"the node {_this_node()} has joined the cluster, and does not see the local paths"
                " that this run uses: put them on an object store, or add --shared-filesystem if every node sees them"
            )


def start_ray(least_cpus: int = 0, dashboard: bool = False) -> ClusterSize:
    """Join the cluster that the environment names (`ray job submit` does), else start one on this machine.

    One that is started here says that it has `least_cpus` even where there are fewer: processes then share them. Ray
    Train asks the dashboard whether its controller is alive. Ends the process, exit code 1, where Ray hangs.

    Raises NodeError where a node of the cluster that was joined doesn't run this process's code.
    """
    if not ray.is_initialized():
        is_joined = bool(os.environ.get("RAY_ADDRESS"))
        # With one CPU to spare for the engine's process: on two cores a reading task could else wait for it forever.
        cpus = None if is_joined else max((os.cpu_count() or 1) + 1, least_cpus)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to Ray's makers unless the user says so
        logging.getLogger(_TOKEN_LOGGER).setLevel(logging.ERROR)  # that tokens are on, as infra/security.md says
        log.info("%s", "joining the Ray cluster" if is_joined else "starting Ray on this machine")
        with _process_ends_after(_START_LIMIT_S, "Ray did not start"), _sigterm_kept(), _room_told():
            ray.init(
                num_cpus=cpus,
                include_dashboard=dashboard if cpus else None,
                logging_level=logging.WARNING,
                # Ray puts words before and behind workers' lines: what is to be JSON stays in the nodes' files.
                log_to_driver=False if logs.is_json() else None,
            )
        if is_joined:
            ours = code_version()
            for node, theirs in _on_each_node(_code_version):
                if theirs != ours:
                    raise mixed_code(node, theirs, ours)
    alive = [node["Resources"] for node in _nodes()]
    return ClusterSize(
        cpus=int(sum(node.get("CPU", 0) for node in alive)),
        gpus=int(sum(node.get("GPU", 0) for node in alive)),
        largest_node_cpus=int(max(node.get("CPU", 0) for node in alive)),
        nodes=len(alive),
    )


@contextlib.contextmanager
def _room_told() -> Iterator[None]:
    """Raise OSError where Ray does not start for want of room in the temporary folder, of which it says nothing."""
    try:
        yield
    except Exception as error:
        folder = tempfile.gettempdir()
        if shutil.disk_usage(folder).free < _LEAST_ROOM_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error
        raise


def check_paths(paths: Iterable[NamedPath], is_shared: bool, output: str = "") -> None:
    """Raise ValueError where several nodes are to use local `paths`, unless all see them (`is_shared`: the user says).

    Below `output`, if that is local, every node must see what the driver writes, and the driver what each node writes.
    Joins the environment's cluster only where a path is local; a cluster that is started here has one node.
    """
    local = [path for path in paths if not storage.is_remote(path.uri)]
    if not local or not (ray.is_initialized() or os.environ.get("RAY_ADDRESS")):
        return
    nodes = start_ray().nodes
    if nodes == 1:
        return
    if not is_shared:
        listed = ", ".join(f"{path.flag} {path.uri}" for path in local)
        raise ValueError(
            f"{listed}: the cluster has {nodes} nodes, and a local path is another place on each. Put it on an object"
            " store, as s3://BUCKET/PREFIX, or add --shared-filesystem if every node has this path mounted"
        )
    if output and not storage.is_remote(output):
        _check_output(output)
    for path in local:
        if path.uri == output:
            continue
        wanted = _witness(path.uri)
        for node, found in _on_each_node(_witness, path.uri):
            if found != wanted:
                raise ValueError(
                    f"{path.flag} {path.uri}: the node {node} sees {found} there, and this one {wanted}: mount the same"
                    " file system at the same path on every node, or put it on an object store"
                )


def _check_output(output: str) -> None:
    folder = storage.join(output, f".graticule-probe-{uuid.uuid4().hex}")
    marker, content = storage.join(folder, "driver"), uuid.uuid4().bytes
    try:
        storage.write_bytes(marker, content)
        for node, (answer, answered, problem) in _on_each_node(_answer_marker, folder):
            if not problem and answer == content and storage.exists(answered):
                continue
            problem = problem or "what one writes there, the other does not see"
            raise ValueError(
                f"--output {output}: is not shared with the node {node}: {problem}. Mount the same file system at the"
                " same path on every node, or put the output on an object store, as s3://BUCKET/PREFIX"
            )
    finally:
        storage.delete_folder(folder)


def _answer_marker(folder: str) -> tuple[bytes, str, str]:
    """Return the driver's marker, the URI of one that was put beside it in answer, and what went wrong."""
    answer = storage.join(folder, uuid.uuid4().hex)
    try:
        found = storage.read_bytes(storage.join(folder, "driver"))
        storage.write_bytes(answer, b"")
    except OSError as error:
        return b"", answer, str(error)
    return found, answer, ""


def _witness(uri: str) -> str:
    """Return what is at a local path, in words that are the same wherever the same is seen."""
    path = local_files.path_of(uri)
    if not os.path.lexists(path) and (wild := re.search(r"[*?\[]", uri)):  # a pattern of names: see `NamePattern`
        path = local_files.path_of(uri[: wild.start()].rpartition("/")[0] or "/")
    if os.path.isfile(path):
        return f"a file of {os.path.getsize(path)} bytes"
    return "a folder" if os.path.isdir(path) else "nothing"


def _code_version() -> str:
    return code_version()  # a task must be a plain function


def _on_each_node(function: Any, *arguments: Any) -> Sequence[tuple[str, Any]]:
    """Call a function of this module on every node; return (address, answer) of each that is still there after it."""
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = []
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append((node, task.options(scheduling_strategy=there).remote(*arguments)))
    answers = []
    for node, reference in asked:
        address = str(node["NodeManagerAddress"])
        try:
            answers.append((address, ray.get(reference, timeout=_ANSWER_LIMIT_S)))
        except Exception as error:  # Ray tells in many ways that a node is gone, or that it can't run us
            if node["NodeID"] not in {alive["NodeID"] for alive in _nodes()}:
                log.warning("the node %s is gone", address)
                continue
            reason = str(error).strip().rsplit("\n", 1)[-1] or type(error).__name__
            raise NodeError(f"the node {address} can't run Graticule's code: {reason}") from error
    return answers


def _this_node() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Put the process's own handler of SIGTERM, where it has one, back in the place of the one that Ray sets."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():  # which alone may
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _process_ends_after(limit_s: float, what: str) -> Iterator[None]:
    """End this process with exit code 1 where the body takes longer.

    When a process of the node dies as it is starting, `ray.init` waits in native code for good, where neither an
    exception nor a signal's handler gets through; and meanwhile the run would keep its lease. It may hold Python's
    lock, too, without which no thread of Python runs: then Python's own watchdog, which needs none, ends it.
    """
    finished = threading.Event()
    faulthandler.dump_traceback_later(limit_s + _LOCKED_LIMIT_S, exit=True, file=sys.__stderr__ or sys.stderr)

    def watch() -> None:
        if not finished.wait(limit_s):
            log.critical("%s within %.0f s: this run ends here. Run the same command again", what, limit_s)
            logging.shutdown()
            os._exit(1)

    threading.Thread(target=watch, name="start limit", daemon=True).start()
    try:
        yield
    finally:
        finished.set()
        faulthandler.cancel_dump_traceback_later()
