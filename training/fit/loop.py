"""The training loop, the same for one process and for each of many: photos, labels and a network in, weights out.

Draw number d of the whole training takes the same photo in the same random view whoever makes it, so a step's gradient
does not depend on how many workers share it, and a training that goes on from a snapshot repeats nothing and skips
nothing.

Shapes: N photos of the source, M photos of one part, B batch, W width and height, C 3 colours, P counts of a step.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from model.geodecoder import GeoDecoder
from training.data.augment import random_numbers
from training.data.dataset import DrawOrder, Inputs, InputSource, PhotoSource, balanced_weights
from training.fit.journal import Journal
from training.fit.objective import Labels, Objective, TeacherView
from training.fit.recipe import Recipe
from training.fit.snapshot import Snapshots, WeightAverage, restore_state, take_state
from training.fit.team import Sharding, Team, gradients_stay_here
from training.fit.tokens import TokenCache
from training.fit.validation import LOG_LIKELIHOOD, Best, Validation

log = logging.getLogger(__name__)

_ROWS_A_STREAM = 200_000
"""A source is asked for so many photos at a time; between two requests its pipeline starts anew."""


@dataclass(frozen=True)
class Upkeep:
    """What is written on the way; none of it changes the network.

    Attributes:
        output: folder or prefix for snapshots and metrics; nothing is written if empty.
        log_steps: a record of the mean losses every so many steps.
        snapshot_steps: a snapshot every so many steps, beside those at each epoch's end; what a crash costs at most.
        keep_snapshots: older ones are removed.
        quiet: say nothing on stdout.
    """

    output: str = ""
    log_steps: int = 20
    snapshot_steps: int = 500
    keep_snapshots: int = 2
    quiet: bool = False

    def __post_init__(self) -> None:
        if min(self.log_steps, self.snapshot_steps, self.keep_snapshots) < 1:
            raise ValueError("log_steps, snapshot_steps and keep_snapshots must be at least 1")


@dataclass(frozen=True, eq=False)
class Task:
    """All that decides a training's outcome, beside the network it starts from.

    Attributes:
        row_M: rows of the source to train on.
        validation_rows: rows to validate on after each epoch; may be none.
        identity: names the training: a snapshot of another one is refused.
        tokens: where the frozen backbone's tokens are kept, to train on in place of photos.
    """

    recipe: Recipe
    labels: Labels
    row_M: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    teacher: TeacherView | None = None
    identity: str = ""
    tokens: TokenCache | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            assert self.recipe.is_frozen, "tokens of a backbone that learns change with every step"
            assert self.teacher is None, "a teacher teaches the backbone"

    @property
    def draws(self) -> int:
        """How many photos are drawn in all."""
        return self.recipe.epochs * len(self.row_M)

    @property
    def steps(self) -> int:
        """How many steps that makes; the last one may be smaller."""
        return -(-self.draws // self.recipe.batch_size)


@dataclass(frozen=True)
class Progress:
    """How far a training came, in how much time since it was started or resumed, and its mean losses at the end.

    `best` is the epoch whose weights are kept for the model; None where nothing could be validated.
    """

    draws: int
    epochs: float
    minutes: float
    losses: dict[str, float]
    best: Best | None = None


def train(
    model: GeoDecoder,
    source: PhotoSource,
    labels: Labels,
    rows: NDArray[np.int64],
    recipe: Recipe,
    teacher: TeacherView | None = None,
) -> Progress:
    """Train `model` in place on the given rows of the source, in this process, and leave it in eval mode.

    The same seed gives the same network. Raises ValueError if training diverges, and as the source does.
    """
    task = Task(recipe, labels, rows, np.empty(0, np.int64), teacher)
    return TrainingLoop(model, task, Team(), Upkeep(quiet=True)).run(source, source)


class TrainingLoop:
    """One process's part in a training. It goes on from the newest snapshot below the output, if there is one."""

    def __init__(self, model: GeoDecoder, task: Task, team: Team, upkeep: Upkeep, sharding: Sharding = "ddp") -> None:
        recipe = task.recipe
        self._task, self._team, self._upkeep = task, team, upkeep
        self._model = model.to(team.device)
        torch.manual_seed(recipe.seed)
        self._objective = Objective(self._model, recipe, task.labels, task.teacher).to(team.device).train()
        blocks = (*model.independent_layers, *model.dependent_layers)
        frozen = model.backbone if recipe.is_frozen else None
        self._joined = team.join(self._objective, blocks, sharding, frozen)
        if isinstance(self._objective, FSDPModule):
            register_fsdp_forward_method(self._objective, "validate")
        self._optimizer = recipe.make_optimizer(self._objective, model.backbone)
        self._average = WeightAverage(self._model, recipe.average, frozen) if recipe.average else None
        weight_M = balanced_weights(task.labels.level_NH[task.row_M, 0], recipe.balance) if recipe.balance else None
        self._order = DrawOrder(task.row_M, recipe.seed, weight_M, task.tokens.shards if task.tokens else None)
        self._snapshots = Snapshots(upkeep.output, upkeep.keep_snapshots) if upkeep.output else None
        self._sums = _Sums()
        self._best: Best | None = None
        self.first_step = self._resume()

    def run(self, source: PhotoSource, validation_source: PhotoSource) -> Progress:
        """Train to the end and return; the network is left in eval mode, as the moving average if there is one.

        The end is the recipe's last epoch, or comes earlier by its `patience`. What is left is the last epoch's
        network; the best one's weights are among the snapshots (`Snapshots.load_best`).

        Where tokens are kept, those that are not there yet are computed first, of photos as `validation_source` has
        them; `source` is then not asked.

        Raises:
            ValueError: training diverged, or too many photos of an epoch could not be had. Every process raises it.
        """
        if self._task.tokens is not None:
            self._task.tokens.fill(self._objective.tokens, validation_source, self._team)
            return self._run(self._task.tokens.training(), self._task.tokens.validation())
        return self._run(source, validation_source)

    def _run(self, source: InputSource, validation_source: InputSource) -> Progress:
        task, batch_size, start = self._task, self._task.recipe.batch_size, time.monotonic()
        journal = None
        if self._team.rank == 0:
            journal = Journal(self._upkeep.output, self.first_step, self._upkeep.quiet)
        step, means, last_log, logged_step = self.first_step, dict[str, float](), start, self.first_step
        for inputs, row_B, draw_B, drawn in () if self._is_over else self._steps(source):
            rate = task.recipe.set_rate(self._optimizer, step / task.steps)
            self._step(step, inputs, row_B, draw_B, drawn)
            step += 1
            end = min(step * batch_size, task.draws)
            epoch_ends = end // len(task.row_M) > (step - 1) * batch_size // len(task.row_M)
            snapshot_due = self._snapshots is not None and (epoch_ends or step % self._upkeep.snapshot_steps == 0)
            log_due = step % self._upkeep.log_steps == 0 or epoch_ends
            if not (snapshot_due or log_due):
                continue
            self._sums.gather(self._team)
            self._check(end)
            epochs = round(end / len(task.row_M), 3)
            if log_due:
                seconds, last_log = time.monotonic() - last_log, time.monotonic()
                speed = (step - logged_step) * batch_size / max(seconds, 1e-9)
                logged_step, means = step, self._sums.window_means()
                record = {"kind": "step", "step": step, "epochs": epochs, "learning_rate": rate, "loss": means}
                if journal is not None:
                    journal.add(record | {"samples_per_s": round(speed, 2), "workers": self._team.size})
            improved = False
            if epoch_ends:
                validated = self._validate(validation_source)
                improved = self._compare(validated, step, epochs)
                record = {"kind": "epoch", "step": step, "epochs": epochs, **self._sums.epoch_record()}
                if journal is not None:
                    journal.add(record | ({"validation": validated, "best": improved} if validated else {}))
            if snapshot_due:
                self._save(step, improved)
            if journal is not None:
                journal.flush()
            if self._is_over:
                break
        if self._average is not None:
            self._average.swap()
        if self._snapshots is not None:
            self._snapshots.wait()
        if journal is not None:
            journal.close()
        self._model.eval()
        minutes = round((time.monotonic() - start) / 60, 1)
        draws = min(step * batch_size, task.draws)
        return Progress(draws, round(draws / len(task.row_M), 1), minutes, means, self._best)

    @property
    def _is_over(self) -> bool:
        return self._best is not None and self._best.is_over(self._task.recipe.patience)

    def _compare(self, validated: dict[str, float], step: int, epochs: float) -> bool:
        """Whether an epoch is the best so far; every process goes by the first one's numbers."""
        log_likelihood = self._team.from_first(validated.get(LOG_LIKELIHOOD))
        if log_likelihood is None:
            return False
        if self._best is None or self._best.is_beaten_by(log_likelihood):
            self._best = Best(step, epochs, log_likelihood)
            return True
        self._best = dataclasses.replace(self._best, waited=self._best.waited + 1)
        if self._is_over:
            log.info("no epoch since %s made validation photos likelier: training ends", self._best.epochs)
        return False

    def _steps(self, source: InputSource) -> Iterator[tuple[Inputs, NDArray[np.int64], NDArray[np.int64], int]]:
        """Yield (inputs, row_B, draw_B, draws asked for) of this process's share of each step to come."""
        batch_size = self._task.recipe.batch_size
        most = max(1, _ROWS_A_STREAM // -(-batch_size // self._team.size))
        for first in range(self.first_step, self._task.steps, most):
            starts = range(first * batch_size, min((first + most) * batch_size, self._task.draws), batch_size)
            shares = [self._team.share(start, min(start + batch_size, self._task.draws)) for start in starts]
            row_D = self._order.rows(starts.start, starts.stop)
            asked = [row_D[share.start - starts.start : share.stop - starts.start : share.step] for share in shares]
            # A worker may have no share of a small last step: then the source has one batch less.
            batches = source.batches(np.concatenate(asked).tolist(), max(len(shares[0]), 1))
            for share, share_rows in zip(shares, asked, strict=True):
                row_B, inputs = next(batches) if len(share) else self._nothing()
                yield inputs, row_B, np.array(share)[_slots(share_rows, row_B)], len(share)

    def _step(self, step: int, inputs: Inputs, row_B: NDArray[np.int64], draw_B: NDArray[np.int64], drawn: int) -> None:
        recipe, team = self._task.recipe, self._team
        count_P = team.sum(torch.from_numpy(self._task.labels.known_P(row_B)).to(team.device))
        torch.manual_seed(((recipe.seed * 1_000_003 + step) * 4099 + team.rank) % (1 << 63))  # dropout's
        self._optimizer.zero_grad()
        parts = np.array_split(np.arange(len(row_B)), recipe.accumulate)
        early = step < recipe.early_share * self._task.steps
        for number, part in enumerate(parts):
            with gradients_stay_here(self._joined, number + 1 < len(parts)):
                terms = self._terms(inputs[part], row_B[part], draw_B[part], count_P, early)
                # Workers' gradients are averaged, but their terms, over the whole step's counts, are to be added.
                (torch.stack(list(terms.values())).sum() * team.size).backward()  # type: ignore[no-untyped-call]
            self._sums.add(terms)
        if recipe.most_gradient:
            nn.utils.clip_grad_norm_(self._objective.parameters(), recipe.most_gradient)
        self._optimizer.step()
        if self._average is not None:
            self._average.update(step)
        self._sums.count(1, drawn, drawn - len(row_B))

    def _terms(
        self,
        inputs: Inputs,
        row_B: NDArray[np.int64],
        draw_B: NDArray[np.int64],
        count_P: Tensor,
        early: bool,
    ) -> dict[str, Tensor]:
        if not len(row_B):  # others wait for this process's gradients: it has none to add, but has to take part
            inputs, row_B, draw_B = self._blank(), np.array([-1]), np.array([0])
        device = self._team.device
        random_BU = random_numbers(self._task.recipe.seed, draw_B).to(device)
        moved = torch.from_numpy(inputs).to(device, non_blocking=True)
        terms: dict[str, Tensor] = self._joined(moved, row_B, random_BU, count_P, early)
        if row_B[0] == -1:
            terms = {name: term * 0 for name, term in terms.items()}
        return terms

    def _check(self, end: int) -> None:
        """Raise ValueError where going on makes no sense; every process sees the same numbers."""
        if not self._sums.finite():
            rate = self._task.recipe.learning_rate
            raise ValueError(f"training diverged after {end} photos: lower the learning rate {rate}")
        most = self._task.recipe.max_failed_fraction * len(self._task.row_M)
        if self._sums.failed > most:
            raise ValueError(
                f"{self._sums.failed:.0f} photos of this epoch's {len(self._task.row_M)} draws could not be read or "
                f"decoded, more than the {most:.0f} allowed (max_failed_fraction): the log names them"
            )

    def _blank(self) -> Inputs:
        """One photo, or its tokens, that shows nothing."""
        if self._task.tokens is not None:
            return np.zeros((1, *self._task.tokens.shape), np.float16)
        return np.full((1, *self._model.config.preprocessing.shape_HWC), 128, np.uint8)

    def _nothing(self) -> tuple[NDArray[np.int64], Inputs]:
        return np.empty(0, np.int64), self._blank()[:0]

    def _validate(self, source: InputSource) -> dict[str, float]:
        """Return how good the network, or the moving average if there is one, is on the validation photos."""
        rows, team = self._task.validation_rows, self._team
        if not len(rows):
            return {}
        batch_size = max(1, self._task.recipe.batch_size // team.size)
        batches = source.batches(rows[team.rank :: team.size].tolist(), batch_size)
        if self._average is not None:
            self._average.swap()
        self._objective.eval()
        validation = Validation(self._task.labels, rows, team)
        # Sharded weights are gathered in every forward pass, so each process has to make as many.
        for _ in range(0, len(rows), team.size * batch_size):
            row_B, inputs = next(batches, self._nothing())
            output = self._objective.validate(torch.from_numpy(inputs if len(row_B) else self._blank()).to(team.device))
            if len(row_B):
                validation.add(row_B, output)
        self._objective.train()
        if self._average is not None:
            self._average.swap()
        return validation.record()

    def _save(self, step: int, is_best: bool) -> None:
        assert self._snapshots is not None
        state = take_state(self._joined, self._optimizer)
        average = self._average.take() if self._average is not None else {}
        if self._team.rank == 0:
            best = dataclasses.asdict(self._best) if self._best is not None else None
            more = {"identity": self._task.identity, "average": average, "sums": self._sums.state(), "best": best}
            self._snapshots.put(step, state | more, is_best)

    def _resume(self) -> int:
        """Put the newest snapshot back, if there is one; return the step to go on with."""
        if self._snapshots is None:
            return 0
        steps = self._team.from_first(self._snapshots.steps())
        if not steps:
            return 0
        state = self._snapshots.load(steps[-1])
        if state["identity"] != self._task.identity:
            raise ValueError(
                f"{self._upkeep.output} has snapshots of another training (other photos, settings or network): "
                "give another output, or remove that one to begin anew"
            )
        restore_state(self._joined, self._optimizer, state)
        if self._average is not None:
            self._average.restore(state["average"])
        self._sums = _Sums.of(state["sums"])
        self._best = Best(**state["best"]) if state.get("best") else None
        log.info("going on after step %d of %d", steps[-1], self._task.steps)
        return int(steps[-1])


class _Sums:
    """Sums over steps: on the device as they come, then over all processes, for a window of steps and for an epoch."""

    def __init__(self) -> None:
        self._here: dict[str, Tensor] = {}
        self._counts = [0, 0, 0]  # steps, draws, failed draws
        self._window: dict[str, float] = {}
        self._epoch: dict[str, float] = {}

    @staticmethod
    def of(state: dict[str, dict[str, float]]) -> _Sums:
        sums = _Sums()
        sums._window, sums._epoch = dict(state["window"]), dict(state["epoch"])
        return sums

    def state(self) -> dict[str, dict[str, float]]:
        return {"window": dict(self._window), "epoch": dict(self._epoch)}

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, term in terms.items():
            self._here[name] = self._here.get(name, 0) + term.detach().double()

    def count(self, steps: int, draws: int, failed: int) -> None:
        self._counts = [self._counts[0] + steps, self._counts[1] + draws, self._counts[2] + failed]

    def gather(self, team: Team) -> None:
        """Take what was added here since the last time together with what the others added."""
        if not self._counts[0]:
            return
        steps, draws, failed = self._counts
        values = [*self._here.values(), *torch.tensor([draws, failed], dtype=torch.float64)]
        total = team.sum(torch.stack([x.to(team.device) for x in values])).tolist()
        for name, value in zip([*self._here, "draws", "failed"], total, strict=True):
            self._window[name] = self._window.get(name, 0.0) + value
            self._epoch[name] = self._epoch.get(name, 0.0) + value
        for sums in (self._window, self._epoch):
            sums["steps"] = sums.get("steps", 0.0) + steps
        self._here, self._counts = {}, [0, 0, 0]

    @property
    def failed(self) -> float:
        return self._epoch.get("failed", 0.0)

    def finite(self) -> bool:
        return all(math.isfinite(value) for value in self._window.values())

    def window_means(self) -> dict[str, float]:
        """Return the mean terms since the last call."""
        means, self._window = _means(self._window), {}
        return means

    def epoch_record(self) -> dict[str, object]:
        """Return the mean terms and the counts since the last call."""
        epoch, self._epoch = self._epoch, {}
        return {"loss": _means(epoch), "draws": int(epoch["draws"]), "failed": int(epoch["failed"])}


def _means(sums: dict[str, float]) -> dict[str, float]:
    steps = sums["steps"]
    return {name: value / steps for name, value in sums.items() if name not in ("steps", "draws", "failed")}


def _slots(asked: NDArray[np.int64], got: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in `asked` each of `got` stands: the same rows in the same order, some left out."""
    slots, slot = np.empty(len(got), np.int64), 0
    for index, row in enumerate(got.tolist()):
        while asked[slot] != row:
            slot += 1
        slots[index], slot = slot, slot + 1
    return slots
