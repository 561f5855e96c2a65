"""Recipes by name: the paper's, a probe's on a frozen backbone, and fine-tuning's.

`paper` is of Clark et al., "Where We Are and What We're Looking At", CVPR 2023, arXiv 2303.04249. The paper says:
cross-entropy of every level, label smoothing 0.1, and of 16 scenes, added up. Read in the authors' public code of the
method before it (AHKerrigan/GeoGuessNet: config.py, main.py, train_and_eval.py, dataloader.py): SGD with learning rate
0.01, momentum 0.9 and weight decay 0.0001 of all parameters, a learning rate halved every 4 of 20 epochs, 200 photos a
step, half precision (fp16 there, bf16 here), no limit of the gradient, photos all alike, the predicted scene's queries,
and photos turned by 1 to 15 degrees, brightness, contrast and saturation by up to 0.4, hue by up to 0.1, half of them
mirrored, 224 of 256 pixels cut out. There photos are turned one way before half of them are mirrored, which is either
way; here angles below one degree occur, too, and a crop is out of the middle square. Only remembered: that the paper's
own network was trained with the numbers of the code before it, and the hierarchy's seven thresholds (`paper7`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from training.data.augment import AugmentConfig
from training.fit.recipe import Recipe

_CROP_AREA = (224 / 256) ** 2

PAPER = Recipe(
    preset="paper",
    epochs=20,
    batch_size=200,
    accumulate=1,
    optimizer="sgd",
    learning_rate=0.01,
    weight_decay=1e-4,
    decay_all=True,
    schedule="step",
    warm_up_share=0.0,
    step_epochs=4.0,
    step_factor=0.5,
    backbone_rate=1.0,
    average=0.0,
    precision="bf16",
    levels="sum",
    label_smoothing=0.1,
    smoothing_km=0.0,
    level_weights=(),
    scene_weight=1.0,
    routing="predicted",
    balance=0.0,
    most_gradient=0.0,
    early_size_px=None,
    patience=0,
    augment=AugmentConfig(
        least_area=_CROP_AREA,
        most_area=_CROP_AREA,
        most_stretch=1.0,
        mirror=True,
        colour=0.4,
        hue=0.1,
        rotation_deg=15.0,
    ),
)
"""Every flag as in the paper, or the authors' code, as far as either says it."""

PROBE = Recipe(
    preset="probe",
    backbone_rate=0.0,
    patience=5,
    augment=AugmentConfig(least_area=1.0, most_area=1.0, most_stretch=1.0, mirror=False, colour=0.0),
)
"""Only the decoder learns, from a backbone that stays as it is and whose tokens are kept: photos as when serving."""

FINETUNE = Recipe(preset="finetune", epochs=10, learning_rate=3e-4, backbone_rate=0.1, patience=3)
"""A model goes on learning in small steps, its backbone in ten times smaller ones."""

PRESETS: Mapping[str, Recipe] = {"none": Recipe(), "paper": PAPER, "probe": PROBE, "finetune": FINETUNE}


def flags(recipe: Recipe) -> dict[str, Any]:
    """Return every setting of a recipe but the preset's name, by its flag's name below --recipe."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(recipe).items():
        flat |= {f"{name}.{inner}": x for inner, x in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name != "preset"}


def preset_record(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe's preset set, and what was given in place of the preset's (JSON values)."""
    plain, preset, own = flags(Recipe()), flags(PRESETS[recipe.preset]), flags(recipe)
    changed = {name: value for name, value in preset.items() if value != plain[name]}
    return {
        "name": recipe.preset,
        "set": {name: value for name, value in changed.items() if own[name] == value},
        "given_instead": {name: value for name, value in own.items() if value != preset[name]},
    }
