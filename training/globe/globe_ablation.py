"""The paper's ablations on a long-tailed synthetic globe: what each idea of GeoDecoder is worth where photos are few.

Towns are photographed as places of the world are: a few of them hundreds of times, most of them a handful of times. The
finest level's cells hold several photos each, so that a town of many photos is cut into cells that nobody can tell
apart, and a town of few has one cell or none. Every network is trained until it has converged, and all of them are
asked for one thing only, where: the town nearest to the answer, and that town's country. A seed is another globe, other
photos and another network; all variants of a seed share its globe and photos.

Source: Clark et al., CVPR 2023, arXiv 2303.04249, whose ablations these are; see `Row.paper` for what is known of them.

Shapes: N photos; M photos of the test; T towns; H levels; K cells of the finest level; B batch; S scenes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.geodecoder import GeoDecoder
from model.world.hierarchy import Hierarchy
from training.data.augment import RANDOM_NUMBERS
from training.data.dataset import ArraySource, DrawOrder
from training.fit.objective import Labels, Objective
from training.fit.snapshot import WeightAverage
from training.fit.validation import summed_losses
from training.globe import globe_study
from training.globe.globe_study import FINEST, PRODUCT, Variant
from training.globe.synthetic_globe import Globe, GlobeConfig, GlobePhotos
from training.hierarchy import PartitionConfig, build_hierarchy
from training.loss import UNKNOWN

LONG_TAILED = GlobeConfig(climates=12, countries=5, towns=5, signs=8, glyphs=6, tail=1.0)
"""300 towns in 60 countries: number r of them has a share of the photos that falls as 1 / r."""
_TRAINING, _TEST, _VALIDATION = 0, 1, 2  # draws of photos
_LEVELS = {7: slice(None), 3: slice(0, None, 3), 1: slice(6, None)}
_AVERAGE, _WARM_UP_STEPS = 0.98, 50


@dataclass(frozen=True)
class Conditions:
    """The world of an ablation, its photos, and how networks are trained on them.

    Attributes:
        globe: its seed is that of the run.
        photos, validation, test: how many of each are drawn, by the towns' shares.
        tau_min, tau_max: the thresholds of the seven levels; three levels take the first, fourth and seventh.
        rare_below: a town of fewer training photos is rare.
        learning_rate: after a warm-up it stays as it is; what is validated and kept is a moving average of the weights.
        patience, least_gain: a training has converged when for so many epochs the negative log-likelihood of the
            validation photos, the mean over the levels in nats, has not fallen by `least_gain` below its least. The
            weights of that least are kept.
        most_epochs: a training ends here, converged or not.
        early_epochs: how fast a network learns is seen after so many.
    """

    globe: GlobeConfig = LONG_TAILED
    photos: int = 4200
    validation: int = 600
    test: int = 3000
    tau_min: int = 1
    tau_max: tuple[int, ...] = (600, 300, 120, 50, 20, 9, 5)
    rare_below: int = 10
    batch_size: int = 64
    learning_rate: float = 5e-3
    patience: int = 2
    least_gain: float = 0.005
    most_epochs: int = 30
    early_epochs: int = 5

    def __post_init__(self) -> None:
        if min(self.photos, self.validation, self.test, self.patience, self.most_epochs, self.rare_below) < 1:
            raise ValueError("give at least 1 photo for everything, 1 epoch and a patience of 1")
        if len(self.tau_max) != max(_LEVELS):
            raise ValueError(f"the seven levels need seven thresholds, not {len(self.tau_max)}")


@dataclass(frozen=True)
class Row:
    """One of the paper's ablations: a network, and what the paper says of it compared with the first of `ROWS`.

    `paper` is -1 where the paper found it worse than the full network, +1 where better, 0 where much the same. None of
    these was read for this project, since the paper's tables are not at hand: all are remembered.
    """

    variant: Variant
    paper: int = 0


_BASE = Variant(independent_layers=1, dependent_layers=1)


def _changed(paper: int, scenes: int = 3, levels: int = 7, independent: int = 1, dependent: int = 1) -> Row:
    variant = Variant(levels=levels, scenes=scenes, independent_layers=independent, dependent_layers=dependent)
    return Row(variant, paper)


ROWS = {
    "full: 7 levels, 3 scenes, N = 1, E = 1": Row(_BASE),
    "3 levels": _changed(-1, levels=3),
    "1 level": _changed(-1, levels=1),
    "1 scene: no scenes told apart": _changed(-1, scenes=1),
    "6 scenes: each split at random": _changed(-1, scenes=6),
    "E = 0, N = 2: none of a level's own": _changed(-1, independent=2, dependent=0),
    "E = 2, N = 0: each of a level's own": _changed(-1, independent=0, dependent=2),
    "1 layer: E = 1, N = 0": _changed(-1, independent=0),
    "4 layers: E = 1, N = 3": _changed(+1, independent=3),
}
"""The full network first; every other row changes one thing. Without the product over the levels, the finest level
alone is read out of the networks of several levels."""
FINEST_PAPER = -1
"""What the paper says of the finest level alone, as in `Row.paper`."""


@dataclass(frozen=True)
class Right:
    """Shares of the test's photos that are put into the right country and town: of all, of rare towns, of others."""

    country: float
    country_rare: float
    country_common: float
    town: float
    town_rare: float
    town_common: float


@dataclass(frozen=True)
class Trained:
    """One row trained once. `answers` by read-out: the product over the levels, the finest level alone.

    `early_country` is the share of countries right after the first epochs; `validation_nll` the least that was
    reached, in nats; `scene` the share of scenes told right, NaN where it is not asked for;
    `seconds` of one processor core.
    """

    row: str
    seed: int
    answers: dict[str, Right]
    early_country: float
    scene: float
    cells: int
    steps: int
    epochs: int
    converged: bool
    validation_nll: float
    seconds: float


@dataclass(frozen=True, eq=False)
class World:
    """A seed's globe with the photos that all of the seed's networks share, and which of its towns are rare."""

    globe: Globe
    training: GlobePhotos
    validation: GlobePhotos
    test: GlobePhotos
    rare_T: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def of(cls, conditions: Conditions, seed: int) -> World:
        """Return the world of a seed."""
        globe = Globe(dataclasses.replace(conditions.globe, seed=seed))
        counts = ((conditions.photos, _TRAINING), (conditions.validation, _VALIDATION), (conditions.test, _TEST))
        training, validation, test = (globe.photos_by_share(count, draw) for count, draw in counts)
        photos_T = np.bincount(training.town_N, minlength=globe.towns)
        return cls(globe, training, validation, test, photos_T < conditions.rare_below)

    def right(self, town_M: NDArray[np.int64], country_M: NDArray[np.int64] | None = None) -> Right:
        """Return how good answers to the test's photos are; the country is the town's unless it is given."""
        globe, true_M = self.globe, self.test.town_N
        is_rare_M = self.rare_T[true_M]
        country_M = globe.country_T[town_M] if country_M is None else country_M
        return Right(*_shares(country_M == globe.country_T[true_M], is_rare_M), *_shares(town_M == true_M, is_rare_M))

    def optima(self) -> tuple[Right, Right]:
        """Return the answers of Bayes' rule, which knows all: of the most probable town, of the most probable country.

        A photo's most probable town may lie in another country than its most probable country. Given the second's
        country, its town is still the most probable one of all.
        """
        posterior_MT = self.globe.posterior_NT(self.test.symbol_N4)
        country_MC = np.zeros((len(self.test), int(self.globe.country_T.max()) + 1))
        np.add.at(country_MC.T, self.globe.country_T, posterior_MT.T)
        town_M = posterior_MT.argmax(axis=1)
        return self.right(town_M), self.right(town_M, country_MC.argmax(axis=1))

    def constants(self) -> dict[str, Right]:
        """Return how good those are that look at no photo: always one answer, or one drawn by the prior."""
        share_T, country_T = self.globe.share_T, self.globe.country_T
        share_C = np.bincount(country_T, share_T)
        always = np.full(len(self.test), share_T.argmax()), np.full(len(self.test), share_C.argmax())
        true_M = self.test.town_N
        is_rare_M = self.rare_T[true_M]
        drawn = Right(*_shares(share_C[country_T[true_M]], is_rare_M), *_shares(share_T[true_M], is_rare_M))
        return {"always the commonest town or country": self.right(*always), "drawn from the prior": drawn}


def study(name: str, seed: int, conditions: Conditions) -> Trained:
    """Train one of `ROWS` until it has converged and measure it; the same arguments give the same result on one thread.

    Raises ValueError for an unknown row.
    """
    if name not in ROWS:
        raise ValueError(f"there is no row {name!r}: take one of {', '.join(map(repr, ROWS))}")
    start, variant = time.process_time(), ROWS[name].variant
    world = World.of(conditions, seed)
    photos = world.training
    thresholds = PartitionConfig(conditions.tau_min, conditions.tau_max[_LEVELS[variant.levels]])
    hierarchy = build_hierarchy(photos.lat_deg_N, photos.lon_deg_N, thresholds)
    torch.manual_seed(seed)
    scenes = [str(number) for number in range(variant.scenes)]
    model = GeoDecoder(globe_study.network(variant, scenes, width=32), hierarchy.class_counts)
    finest = hierarchy.levels[-1]
    town_K = world.globe.nearest_town_N(finest.lat_deg_K, finest.lon_deg_K)
    early = []

    def look(epoch: int) -> None:
        if epoch == conditions.early_epochs:
            cell_M = globe_study.best_cells(model, hierarchy, world.test)[1][PRODUCT]
            early.append(world.right(town_K[cell_M]).country)

    course = _until_converged(model, hierarchy, world, variant.scenes, conditions, look)
    scene, cells = globe_study.best_cells(model, hierarchy, world.test)
    return Trained(
        row=name,
        seed=seed,
        answers={read_out: world.right(town_K[cell_M]) for read_out, cell_M in cells.items()},
        early_country=early[0] if early else float("nan"),
        scene=scene if variant.scenes == len(world.globe.config.scenes) else float("nan"),
        cells=len(finest),
        seconds=round(time.process_time() - start, 1),
        **dataclasses.asdict(course),
    )


@dataclass(frozen=True)
class _Course:
    """How a training went, as in `Trained`."""

    steps: int
    epochs: int
    converged: bool
    validation_nll: float


def _until_converged(
    model: GeoDecoder,
    hierarchy: Hierarchy,
    world: World,
    scenes: int,
    conditions: Conditions,
    look: Callable[[int], None],
) -> _Course:
    """Train `model` and leave its best weights in it; `look` is called with the model after every epoch."""
    photos, number, seed = world.training, len(world.training), world.globe.config.seed
    recipe = globe_study.recipe_of(seed, number, number)
    recipe = dataclasses.replace(recipe, batch_size=conditions.batch_size, learning_rate=conditions.learning_rate)
    told = _told_scenes(photos, scenes, len(world.globe.config.scenes), seed)
    labels = Labels.of(hierarchy, photos.lat_deg_N, photos.lon_deg_N, told)
    objective = Objective(model, recipe, labels)
    known = world.validation
    untold = np.full(len(known), UNKNOWN)
    known_labels = Labels.of(hierarchy, known.lat_deg_N, known.lon_deg_N, untold)
    judge = Objective(model, recipe, known_labels)
    optimizer, order = recipe.make_optimizer(objective, model.backbone), DrawOrder(np.arange(number), seed)
    average = WeightAverage(model, _AVERAGE)
    step, best, best_weights = 0, _Course(0, 0, False, float("inf")), average.take()
    for epoch in range(1, conditions.most_epochs + 1):
        objective.train()
        rows = order.rows((epoch - 1) * number, epoch * number).tolist()
        for row_B, pixels_BYXC in ArraySource(photos.pixels_NYXC).batches(rows, recipe.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / _WARM_UP_STEPS)
            optimizer.zero_grad()
            count_P, still_BU = torch.from_numpy(labels.known_P(row_B)), torch.zeros(len(row_B), RANDOM_NUMBERS)
            terms = objective(torch.from_numpy(pixels_BYXC), row_B, still_BU, count_P)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), recipe.most_gradient)
            optimizer.step()
            average.update(step)
            step += 1
        average.swap()
        model.eval()
        nll = _mean_nll(judge, known_labels, ArraySource(known.pixels_NYXC))
        look(epoch)
        average.swap()
        if nll < best.validation_nll - conditions.least_gain:
            best, best_weights = _Course(step, epoch, False, nll), average.take()
        elif epoch - best.epochs >= conditions.patience:
            best = dataclasses.replace(best, converged=True)
            break
    average.restore(best_weights)
    average.swap()
    model.eval()
    return best


def _mean_nll(judge: Objective, labels: Labels, source: ArraySource) -> float:
    """Return the mean over the levels of the mean negative log-likelihood of the photos' cells, in nats."""
    batches = source.batches(range(len(labels.level_NH)), 200)
    sums = torch.stack(
        [summed_losses(labels, row_B, judge.validate(torch.from_numpy(pixels))) for row_B, pixels in batches]
    ).sum(dim=0)
    return float((sums[:-1, 0] / sums[:-1, 2]).mean())


def _told_scenes(photos: GlobePhotos, scenes: int, world_scenes: int, seed: int) -> NDArray[np.int64]:
    """Return what a network of so many scenes is told: nothing of one; of more than there are, each split at random."""
    if scenes == 1:
        return np.full(len(photos), UNKNOWN)
    parts = scenes // world_scenes
    return photos.scene_N * parts + np.random.default_rng([seed, 4]).integers(parts, size=len(photos))


def _shares(right_M: NDArray[np.generic], is_rare_M: NDArray[np.bool_]) -> tuple[float, float, float]:
    right_M = right_M.astype(np.float64)
    return float(right_M.mean()), float(right_M[is_rare_M].mean()), float(right_M[~is_rare_M].mean())


_WIDTHS = (12, 12, 12, 12, 9, 12, 12, 7, 8, 7)
_SAME, _SIGNS = 0.005, {-1: "worse", 0: "same", 1: "better"}
_LEGEND = """country, town: % of new photos put into the right one, mean ± standard deviation over the seeds
rare: photos of towns with fewer than {rare} training photos; others: of all other towns
Δ: of country, from the full network, seed by seed; early: country after {early} epochs
steps: until the validation photos' likelihood was highest
paper: what it found of the same change, as remembered; here: by half a percent and two standard errors"""


def table(results: list[Trained], conditions: Conditions) -> str:
    """Return the one table of some trainings, which are to be the same rows for every seed: shares in %."""
    seeds = sorted({result.seed for result in results})
    of = {(result.row, result.seed): result for result in results}
    worlds = [World.of(conditions, seed) for seed in seeds]
    full = [of[next(iter(ROWS)), seed].answers[PRODUCT] for seed in seeds]

    def line(label: str, answers: list[Right], runs: list[Trained] | None = None, paper: int | None = None) -> str:
        gain = np.array([answer.country for answer in answers]) - np.array([answer.country for answer in full])
        columns = ("country", "country_rare", "country_common", "town", "town_rare")
        cells = [_spread(np.array([getattr(answer, name) for answer in answers])) for name in columns]
        compared = paper is not None and answers is not full
        early = f"{100 * np.mean([run.early_country for run in runs]):.1f}" if runs else ""
        cells[3:3] = [_spread(gain, "+") if compared else "", early]
        steps = f"{np.mean([run.steps for run in runs]):.0f}" if runs else ""
        verdicts = (_SIGNS[paper], _SIGNS[_direction(gain)]) if compared and paper is not None else ("", "")
        return _line(label, *cells, steps, *verdicts)

    optima = [world.optima() for world in worlds]
    lines = [
        _LEGEND.format(rare=conditions.rare_below, early=conditions.early_epochs),
        "",
        _heading(results, worlds, conditions),
        _line("", "country", "rare", "others", "Δ", "early", "town", "rare", "steps", "paper", "here"),
        line("optimum: most probable country", [country for _, country in optima]),
        line("optimum: most probable town", [town for town, _ in optima]),
    ]
    for name in dict.fromkeys(result.row for result in results):
        runs = [of[name, seed] for seed in seeds]
        lines.append(
            line(name, full if runs[0].row == next(iter(ROWS)) else _answers(runs, PRODUCT), runs, ROWS[name].paper)
        )
        if ROWS[name].variant.levels > 1 and name in (next(iter(ROWS)), "3 levels"):
            lines.append(line("   its finest level, no product", _answers(runs, FINEST), None, FINEST_PAPER))
    for name in worlds[0].constants():
        lines.append(line(name, [world.constants()[name] for world in worlds]))
    return "\n".join([*lines, "", _footing(results, conditions)])


def _answers(runs: list[Trained], read_out: str) -> list[Right]:
    return [run.answers[read_out] for run in runs]


def _heading(results: list[Trained], worlds: list[World], conditions: Conditions) -> str:
    rare = np.mean([world.rare_T[world.test.town_N].mean() for world in worlds])
    towns = np.mean([world.rare_T.sum() for world in worlds])
    cells = np.mean([result.cells for result in results])
    return (
        f"{conditions.photos} photos of {worlds[0].globe.towns} towns, {towns:.0f} of them rare with {rare:.0%} of the "
        f"new photos; {cells:.0f} cells of {conditions.tau_min + 1} to {conditions.tau_max[-1]} photos; "
        f"{len(worlds)} seeds"
    )


def _footing(results: list[Trained], conditions: Conditions) -> str:
    seconds = [result.seconds for result in results]
    return (
        f"{sum(result.converged for result in results)} of {len(results)} trainings converged: {conditions.patience} "
        f"epochs without {conditions.least_gain} nats less\n"
        f"one training took {np.mean(seconds):.0f} s of one core, at most {max(seconds):.0f}; all of them "
        f"{sum(seconds) / 60:.0f} minutes"
    )


def _direction(gain: NDArray[np.float64]) -> int:
    """Return 1 or -1 where the mean is off zero by more than chance and more than what matters, else 0."""
    error = 2 * gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return int(np.sign(gain.mean())) if abs(gain.mean()) > max(error, _SAME) else 0


def _line(label: str, *cells: str) -> str:
    columns = "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    return f"{label:<39}{columns}".rstrip()


def _spread(share: NDArray[np.float64], sign: str = "-") -> str:
    spread = f" ± {100 * share.std(ddof=1):.1f}" if len(share) > 1 else ""
    return f"{100 * share.mean():{sign}.1f}{spread}"
