"""A trained model as one folder that can be checked and can't run code: JSON, safetensors, Parquet; never pickle.

config.json          format version, kind, name, network, reading, hashes, how it was trained
weights.safetensors  every parameter and buffer of the network
hierarchy.parquet, hierarchy.json
prior.parquet        where photos are taken, if the model has a prior
MODEL_CARD.md        optional, for people

Format 1, which had no kind, prior or shares of it, is read too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_parameter_registration_hook

from model.geodecoder import GeoDecoderConfig
from model.networks import Config, Network, PriorConfig, build, config_from_json, kind_of
from model.readout import AUTO, BEST_CELL, Combination, PointRule, Reading
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior

FORMAT_VERSION = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
PRIOR_FILE = "prior.parquet"

_KEYS_1 = {
    "format_version",
    "name",
    "model",
    "class_counts",
    "temperatures",
    "hierarchy_sha256",
    "weights_sha256",
    "training",
}
_KEYS = _KEYS_1 | {"kind", "prior_sha256", "prior_share", "radius_mass", "combination"}
_MAX_CONFIG_BYTES = 16 << 20
_MAX_SETTING = 8192  # widths, depths and sizes in pixels; the number of cells is not among them
_RESTORE = "copy the whole checkpoint folder again from where it was published"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checked checkpoint folder; its weights are read when `build_model` is called.

    Attributes:
        reading: how its logits are read, `point` included.
        prior: where photos are taken, None where the model has no prior.
        training: whatever the trainer wanted to remember: data, split, numbers. It does not enter `model_id`.
        model_id: the name and 12 hexadecimal digits of a SHA-256 over network, weights, hierarchy, prior and reading:
            the same id means the same answers. Where the point is not the default, "+" and its name follow.
        group_K: the group of each of the finest level's cells, for `Answers.group_probability_BG`; None for one group.
    """

    folder: Path
    name: str
    config: Config
    hierarchy: Hierarchy
    reading: Reading
    prior: Prior | None
    weights_sha256: str
    training: dict[str, Any]
    model_id: str
    default_point: PointRule = AUTO
    group_K: NDArray[np.int64] | None = None

    def grouping(self, group_K: NDArray[np.int64]) -> Checkpoint:
        """The same model, whose answers also have the probabilities of these groups of the finest level's cells."""
        return dataclasses.replace(self, group_K=group_K)

    def pointing(self, point: PointRule) -> Checkpoint:
        """The same model, whose answers have their point elsewhere, and so another `model_id`."""
        suffix = "" if point == self.default_point else f"+{point}"
        reading = dataclasses.replace(self.reading, point=point)
        return dataclasses.replace(self, reading=reading, model_id=weights_id(self.model_id) + suffix)

    @staticmethod
    def save(
        folder: Path,
        model: Network,
        hierarchy: Hierarchy,
        reading: Reading | None = None,
        training: dict[str, Any] | None = None,
        name: str = "geodecoder",
        prior: Prior | None = None,
    ) -> Checkpoint:
        """Write `model` to `folder`, config.json last, and return it as loaded from there.

        Args:
            reading: the logits as they are if not given; its own prior is that of `prior` in this hierarchy.
            training: free-form, JSON values only.
            name: lower-case letters, digits, dots and dashes; the readable part of `model_id`.

        Raises:
            ValueError: a hierarchy that is not the model's, weights that are not finite, a name with other characters.
        """
        _require_same_counts(model.class_counts, hierarchy)
        _require_name(name)
        reading = reading or Reading.plain(len(hierarchy.levels))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)  # a half-written folder must not look like the old checkpoint
        weights = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
        for key, tensor in weights.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(f"the weights of {key} are not finite: training diverged, so nothing was saved")
        save_file(weights, folder / WEIGHTS_FILE)
        hierarchy.save(folder)
        (folder / PRIOR_FILE).unlink(missing_ok=True)
        if prior is not None:
            (folder / PRIOR_FILE).write_bytes(prior.to_bytes())
        values = {
            "format_version": FORMAT_VERSION,
            "kind": kind_of(model.config),
            "name": name,
            "model": model.config.to_json(),
            "class_counts": list(model.class_counts),
            "temperatures": list(reading.temperatures),
            "prior_share": list(reading.prior_share),
            "radius_mass": reading.radius_mass,
            "combination": reading.combination,
            "hierarchy_sha256": hierarchy.content_hash,
            "prior_sha256": None if prior is None else prior.content_hash,
            "weights_sha256": _sha256(folder / WEIGHTS_FILE),
            "training": training or {},
        }
        (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return Checkpoint.load(folder)

    @staticmethod
    def load(folder: Path) -> Checkpoint:
        """Read and check a checkpoint folder: every hash, key and class count.

        Raises:
            ValueError: naming the file that is missing, damaged or of another model, and what to do.
        """
        values = _read_config(folder)
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            raise ValueError(f"{weights} is missing: {_RESTORE}")
        try:
            hierarchy = Hierarchy.load(folder)
        except OSError as error:
            raise ValueError(f"the hierarchy in {folder} cannot be read ({error}): {_RESTORE}") from error
        config_file = folder / CONFIG_FILE
        if hierarchy.content_hash != values["hierarchy_sha256"]:
            raise ValueError(
                f"hierarchy.parquet in {folder} is not this model's: its hash is not {CONFIG_FILE}'s; {_RESTORE}"
            )
        is_first = values["format_version"] == 1
        prior = None if is_first else _prior(folder, values["prior_sha256"])
        default_point = BEST_CELL if is_first else AUTO  # what it was when they were made
        try:
            config = config_from_json("geodecoder" if is_first else values["kind"], values["model"])
            _require_same_counts(tuple(values["class_counts"]), hierarchy)
            reading = _reading(values, hierarchy, prior, default_point)
            _require_plausible(config, len(hierarchy.levels))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{config_file} is wrong: {error}; {_RESTORE}") from error
        if _sha256(weights) != values["weights_sha256"]:
            raise ValueError(
                f"{weights} is damaged or of another model: its hash differs from {CONFIG_FILE}'s; {_RESTORE}"
            )
        identity = {key: value for key, value in values.items() if key not in ("training", "name")}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Checkpoint(
            folder=folder,
            name=values["name"],
            config=config,
            hierarchy=hierarchy,
            reading=reading,
            prior=prior,
            weights_sha256=values["weights_sha256"],
            training=values["training"],
            model_id=f"{values['name']}-{digest[:12]}",
            default_point=default_point,
        )

    def build_model(self) -> Network:
        """The network with its weights, in eval mode, on the CPU, in fp32.

        Raises:
            ValueError: weights that are not exactly this network's, by name or shape, or not finite.
        """
        weights = self.folder / WEIGHTS_FILE
        try:
            _require_fitting_weights(self.config, self.hierarchy, weights)
            tensors = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{weights} cannot be read ({error}): {_RESTORE}") from error
        broken = [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if broken:
            raise ValueError(f"{weights}: the weights of {broken[0]} are not finite: train again from an earlier state")
        model = build(self.config, self.hierarchy)
        try:
            model.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:300]
            raise ValueError(f"{weights} does not fit the network in {CONFIG_FILE}: {detail}") from error
        return model.eval()


def weights_id(model_id: str) -> str:
    """A `model_id` without what it says of the point."""
    return model_id.partition("+")[0]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}; give the folder that training wrote")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {_MAX_CONFIG_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_RESTORE}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged (not a JSON object): {_RESTORE}")
    if "format_version" not in values:
        raise ValueError(f"{folder} is another program's model ({CONFIG_FILE} has no format_version): import it first")
    version = values.get("format_version")
    if version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"{path} has format version {version!r}, this Graticule reads 1 and {FORMAT_VERSION}: upgrade Graticule"
        )
    keys = _KEYS_1 if version == 1 else _KEYS
    if set(values) != keys:
        unknown, missing = sorted(set(values) - keys), sorted(keys - set(values))
        raise ValueError(f"{path} is wrong (unknown keys {unknown}, missing keys {missing}): {_RESTORE}")
    _require_name(values["name"])
    if not isinstance(values["training"], dict):
        raise ValueError(f"{path}: training must be a JSON object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different: of two alike, other readers would take the other one."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands in it twice")
    return values


def _require_name(name: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", name):
        raise ValueError(
            f"a model's name must be up to 64 lower-case letters, digits, dots and dashes, not {str(name)[:100]!r}"
        )


def _require_plausible(config: Config, levels: int) -> None:
    """Refuse what no network of ours says, before anything is computed from it."""
    if not isinstance(config, PriorConfig) and (config.backbone.name or config.backbone.pretrained):
        raise ValueError("model.backbone must be spelled inline, not name another model")
    if not all(scene.isprintable() and 0 < len(scene) <= 100 for scene in config.scenes):
        raise ValueError("model.scenes must be names of up to 100 printable characters")
    largest = max(_whole_numbers([config.to_json(), levels]))
    if largest > _MAX_SETTING:
        raise ValueError(f"model has a setting of {largest:.3g}, more than {_MAX_SETTING} makes no sense in a network")


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield abs(value)
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(inner)


def _require_fitting_weights(config: Config, hierarchy: Hierarchy, weights: Path) -> None:
    """Compare the network with its weights' names and shapes without memory for either: a lie may ask for terabytes.

    Raises ValueError; what `weights` itself makes go wrong is safetensors' own error.
    """
    with safe_open(weights, "pt") as file:
        stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    if isinstance(config, GeoDecoderConfig) and config.independent_layers + config.dependent_layers > len(stored):
        raise ValueError(f"{weights} does not fit the network in {CONFIG_FILE}: it has too few layers")
    try:
        with _at_most_parameters(2 * len(stored) + 100), torch.device("meta"):
            network = build(config, hierarchy)
    except (ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"the network in {CONFIG_FILE} cannot be built ({detail}): {_RESTORE}") from error
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    wrong = sorted(key for key in wanted.keys() | stored.keys() if wanted.get(key) != stored.get(key))
    if wrong:
        key = wrong[0]
        detail = f"{key!r} should be {wanted.get(key, 'absent')} and is {stored.get(key, 'absent')}"
        raise ValueError(f"{weights} does not fit the network in {CONFIG_FILE}: {detail[:300]}")


@contextmanager
def _at_most_parameters(limit: int) -> Iterator[None]:
    """Stop a network that is being built here when it has far more parameters than are stored: it may be endless."""
    count = itertools.count(1)

    def stop(module: object, name: str, parameter: object) -> None:
        if next(count) > limit:
            raise ValueError(f"the network in {CONFIG_FILE} has far more layers than its weights; {_RESTORE}")

    hook = register_module_parameter_registration_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def _prior(folder: Path, content_hash: Any) -> Prior | None:
    if content_hash is None:
        return None
    path = folder / PRIOR_FILE
    try:
        prior = Prior.from_bytes(path.read_bytes(), str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {_RESTORE}") from error
    if prior.content_hash != content_hash:
        raise ValueError(f"{path} is not this model's: its hash is not {CONFIG_FILE}'s; {_RESTORE}")
    return prior


def _reading(values: dict[str, Any], hierarchy: Hierarchy, prior: Prior | None, point: PointRule) -> Reading:
    temperatures = _temperatures(values["temperatures"], len(hierarchy.levels))
    if values["format_version"] == 1:
        return Reading(temperatures, point=point)
    shares, combination = values["prior_share"], values["combination"]
    if not isinstance(shares, list) or any(isinstance(x, bool) or not isinstance(x, int | float) for x in shares):
        raise ValueError("prior_share must be a list of numbers, one a level")
    if combination not in get_args(Combination):
        raise ValueError(f"combination must be one of {', '.join(get_args(Combination))}, not {combination!r:.50}")
    if isinstance(values["radius_mass"], bool) or not isinstance(values["radius_mass"], int | float):
        raise ValueError("radius_mass must be a number")
    return Reading(
        temperatures,
        None if prior is None else prior.levels(hierarchy),
        tuple(map(float, shares)),
        float(values["radius_mass"]),
        combination,
        point,
    )


def _temperatures(values: Any, levels: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != levels:
        raise ValueError(f"temperatures must be a list of {levels} numbers, one a level")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 <= value <= 1e6:
            raise ValueError(f"temperatures must be positive numbers from 1e-6 to 1e6, not {value!r:.100}")
    return tuple(float(value) for value in values)


def _require_same_counts(class_counts: tuple[int, ...], hierarchy: Hierarchy) -> None:
    if class_counts != hierarchy.class_counts:
        raise ValueError(f"the network has {class_counts} classes, the hierarchy has {hierarchy.class_counts} cells")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
