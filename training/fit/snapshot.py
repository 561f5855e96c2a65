"""The state of a training, so that it can go on exactly where it was: written beside it, one atomic object each.

A snapshot is read with torch's weights-only loader: it holds tensors, numbers and texts, and can't run code.
"""

from __future__ import annotations

import io
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline import storage

log = logging.getLogger(__name__)

FOLDER = "snapshots"
_NAME = re.compile(r"step-(\d{9})\.pt")
_BEST = re.compile(r"best-(\d{9})\.pt")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


class Snapshots:
    """The snapshots below one output. Only the first process of a team writes; every one may read.

    Beside the newest few, which a training goes on from, there are the weights of its best step. A snapshot names that
    step, and is written after its weights; those of an older one go afterwards. So a training that is killed at any
    moment has a newest snapshot and the best weights that this one knows of.
    """

    def __init__(self, output: str, keep: int = 2) -> None:
        self._folder = storage.join(output, FOLDER)
        self._keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._writing: Future[None] | None = None

    def steps(self) -> list[int]:
        """Return the steps there are snapshots of, newest last."""
        return self._steps(_NAME)

    def load(self, step: int) -> dict[str, Any]:
        """Return what `put` was given for a step."""
        return self._load(self._uri(step))

    def load_best(self) -> dict[str, Any]:
        """Return weights and moving average of the best step that the newest snapshot knows of; its own if of none."""
        state = self.load(self.steps()[-1])
        return self._load(self._uri(state["best"]["step"], "best")) if state.get("best") else state

    def put(self, step: int, state: dict[str, Any], is_best: bool = False) -> None:
        """Write a snapshot in the background; `state` must not change any more. Raises what the one before raised.

        `state["best"]` has the best `step` so far, if there is one; `is_best` if it is this one.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, step, state, is_best)

    def wait(self) -> None:
        """Return when what was put is there."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def clear(self) -> None:
        """Remove them all: what came of the training is kept elsewhere."""
        self.wait()
        storage.delete_folder(self._folder)

    def _write(self, step: int, state: dict[str, Any], is_best: bool) -> None:
        if is_best:
            self._put(self._uri(step, "best"), {name: state[name] for name in ("weights", "average")})
        self._put(self._uri(step), state)
        for old in self.steps()[: -self._keep]:
            storage.delete(self._uri(old))
        if state.get("best"):
            for old in set(self._steps(_BEST)) - {state["best"]["step"]}:
                storage.delete(self._uri(old, "best"))

    def _put(self, uri: str, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        storage.write_bytes(uri, buffer.getvalue())

    def _load(self, uri: str) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True)
        return state

    def _steps(self, pattern: re.Pattern[str]) -> list[int]:
        names = (entry.uri.rpartition("/")[2] for entry in storage.list_files(self._folder))
        return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))

    def _uri(self, step: int, kind: str = "step") -> str:
        return storage.join(self._folder, f"{kind}-{step:09d}.pt")


def take_state(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return copies of weights and optimizer on the CPU, whole where they are sharded, without frozen weights.

    Every process has to call it; the first gets them (the others may get nothing).
    """
    weights, moments = get_state_dict(objective, optimizer, options=_WHOLE)
    return {"weights": _copied(weights), "optimizer": _copied(moments)}


def restore_state(objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back what `take_state` returned, given to every process; on any number of processes and either sharding."""
    set_state_dict(
        objective,
        optimizer,
        model_state_dict=state["weights"],
        optim_state_dict=_copied(state["optimizer"]),  # or the optimizer would go on in the state itself
        options=StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False),
    )


class WeightAverage:
    """A moving average of a network's weights and statistics, that can be swapped in.

    The decay grows to its full value over the first steps, as (1 + step) / (10 + step): the start counts for little.

    Args:
        frozen: a part that stays as it is, and so is its own average.
    """

    def __init__(self, module: nn.Module, decay: float, frozen: nn.Module | None = None) -> None:
        self._decay = decay
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        still = {id(x) for x in (*frozen.parameters(), *frozen.buffers())} if frozen is not None else set()
        self._live = {name: x for name, x in tensors.items() if x.is_floating_point() and id(x) not in still}
        self._average = {name: x.detach().clone() for name, x in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, live in self._live.items():
            self._average[name].mul_(decay).add_(live.detach(), alpha=1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the live weights; a second call undoes it."""
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self._average[name])
            self._average[name].copy_(kept)

    def take(self) -> dict[str, Tensor]:
        """Return a copy of the average on the CPU, whole where it is sharded; every process has to call it."""
        return {name: _whole(x).detach().cpu().clone() for name, x in self._average.items()}

    def restore(self, average: dict[str, Tensor]) -> None:
        """Put back what `take` returned."""
        for name, mine in self._average.items():
            whole = average[name].to(mine.device)
            if isinstance(mine, DTensor):
                mine.copy_(distribute_tensor(whole, mine.device_mesh, mine.placements))
            else:
                mine.copy_(whole)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
