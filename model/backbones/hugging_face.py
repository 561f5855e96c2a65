"""Vision networks by transformers: from a type and its settings, a local folder, or the local Hugging Face cache.

Nothing here asks a network, and no folder's own code is run. Of a folder with two towers (CLIP, SigLIP), the half that
looks at pictures is taken. transformers takes longer to import than all else together, so it is imported when a network
is built: whoever runs an engine that is compiled already never waits for it.

Shapes: N positions · D width · G rows and columns of a grid of patches.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

IMAGE_SIZE = "image_size"
_ANTIALIASED = ("dinov2_with_registers",)
"""Types whose own code interpolates positions with the other cubic, which is gentler."""
_PREPROCESSOR_FILE = "preprocessor_config.json"
_PROCESSOR_FILE = "processor_config.json"
"""Where newer folders with several processors keep theirs together."""
_NOT_ARCHITECTURE = (
    "model_type",
    "transformers_version",
    "architectures",
    "dtype",
    "_name_or_path",
    "id2label",
    "label2id",
    # Which feature maps a detector would take, derived from the depths:
    "stage_names",
    "out_features",
    "out_indices",
)


def architecture(model_type: str, name: str, overrides: dict[str, Any], image_size_px: int) -> Any:
    """Return transformers' configuration of a type, or of a named model, for images of some size.

    Raises:
        ValueError: an unknown type, a setting that it has not, a model that is not on this machine.
    """
    known = _named(name) if name else _default(model_type)
    settings = known.to_dict()
    unknown = sorted(set(overrides) - set(settings))
    if unknown:
        # transformers itself would take any key and ignore it.
        raise ValueError(f"a {known.model_type} has no setting {', '.join(unknown)}")
    changed = dict(overrides)
    if IMAGE_SIZE in settings:
        is_pair = isinstance(settings[IMAGE_SIZE], list | tuple)
        changed.setdefault(IMAGE_SIZE, [image_size_px] * 2 if is_pair else image_size_px)
    try:
        # Rebuilt, not assigned: some settings derive others (Swin's hidden size, stage names).
        return type(known)(**{**(known.to_diff_dict() if name else {}), **changed})
    except (ValueError, TypeError, _strict_dataclass_error()) as error:
        raise ValueError(f"wrong setting for the backbone {name or model_type}: {_short(error)}") from error


def settings(of: Any) -> dict[str, Any]:
    """Return what a configuration says of the architecture, as plain JSON values.

    Library versions and the like are left out, and what config.json files carry along that the type has no setting for.
    """
    known = _default(of.model_type).to_dict().keys() - set(_NOT_ARCHITECTURE)
    return {key: value for key, value in of.to_diff_dict().items() if key in known}


def network(of: Any) -> nn.Module:
    """Return the network that a configuration describes, its weights at random, in fp32."""
    with _quiet():
        built: nn.Module = _transformers().AutoModel.from_config(of, dtype=torch.float32)
    return built


def load_weights(model: nn.Module, name: str, of: Any) -> set[str]:
    """Copy the weights of a named model into `model`, made of the configuration `of`; return the keys it has none for.

    Where the image sizes differ, learned positions are interpolated over the grid of patches, as transformers does it.

    Raises:
        ValueError: a model that is not on this machine, or incomplete; positions that can't be interpolated.
    """
    own = _named(name)
    stored, report = _stored(_transformers().AutoModel, name, own)
    tensors = stored.state_dict()
    with torch.no_grad():
        for key, mine in model.state_dict().items():
            if mine.shape != tensors[key].shape:
                tensors[key] = _interpolated(tensors[key], mine.shape, name, own, of)
            mine.copy_(tensors[key])
    return set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}


def clip_projection(name: str) -> Tensor:
    """Return the matrix, (to, from), that takes the first token of a named CLIP to where it is compared with texts.

    Raises:
        ValueError: a model that is not on this machine, or has no such matrix.
    """
    stored, report = _stored(_transformers().CLIPVisionModelWithProjection, name, _named(name))
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{name} lacks {missing[0]}, which a CLIP that is compared with texts has: give all of it")
    projection: Tensor = stored.visual_projection.weight
    return projection


def image_size_px(name: str) -> int | None:
    """Return the image size in a named model's own configuration; None where that says none."""
    size = getattr(_named(name), IMAGE_SIZE, None)
    return int(max(size) if isinstance(size, list | tuple) else size) if size else None


def image_processor(name: str) -> dict[str, Any]:
    """Return what a named model's files say of how its pixels are made; empty where they say nothing.

    Raises:
        ValueError: a file that is no JSON object.
    """
    for file_name in (_PREPROCESSOR_FILE, _PROCESSOR_FILE):
        path = _file(name, file_name)
        if path is None:
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file_name} of {name} cannot be read ({_short(error)}): download it again") from error
        if isinstance(values, dict) and file_name == _PROCESSOR_FILE:
            values = values.get("image_processor", {})
        if not isinstance(values, dict):
            raise ValueError(f"{file_name} of {name} is not a JSON object: download it again")
        if values:
            return values
    return {}


def version() -> str:
    """Return the version of transformers, without importing it."""
    return importlib.metadata.version("transformers")


def _transformers() -> Any:
    import transformers

    return transformers


def _strict_dataclass_error() -> type[Exception]:
    """What a configuration raises for a value of the wrong type."""
    from huggingface_hub.errors import StrictDataclassError

    error: type[Exception] = StrictDataclassError
    return error


def _file(name: str, file_name: str) -> Path | None:
    """A file of a folder, or of the local cache by its hub name; None where it is not there."""
    if Path(name).is_dir():
        return path if (path := Path(name) / file_name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file_name)
    except HFValidationError:  # not a name that the hub could have
        return None
    return Path(found) if isinstance(found, str) else None


def _named(name: str) -> Any:
    """A named model's own configuration; of two towers, that of the one for pictures."""
    try:
        with _quiet():
            known = _transformers().AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, _strict_dataclass_error()) as error:
        raise ValueError(_not_here(name)) from error
    vision = getattr(known, "vision_config", known)
    if hasattr(vision, "projection_dim") and hasattr(known, "projection_dim"):
        # Of two towers it is said beside the two towers, whatever the half's own configuration says.
        vision.projection_dim = known.projection_dim
    return vision


def _stored(model_class: Any, name: str, of: Any) -> tuple[Any, dict[str, Any]]:
    """A named model as one of transformers' classes, and its report of keys that are missing or do not fit."""
    try:
        with _quiet():
            stored, report = model_class.from_pretrained(
                name,
                config=of,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except OSError as error:
        raise ValueError(_not_here(name)) from error
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({_short(error)}): download them again") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the weights of {name} do not fit its config.json: {_short(error)}") from error
    return stored, report


def _default(model_type: str) -> Any:
    try:
        with _quiet():
            return _transformers().AutoConfig.for_model(model_type)
    except (ValueError, KeyError) as error:
        raise ValueError(f"transformers knows no backbone of type {model_type}") from error


def _interpolated(table: Tensor, shape: torch.Size, name: str, own: Any, new: Any) -> Tensor:
    """A table of learned positions, (1, N, D) or (N, D), for another grid; what stands before the grid stays."""
    old_side, new_side = (_patches_a_side(architecture) for architecture in (own, new))
    before = table.shape[-2] - old_side**2 if table.ndim >= 2 else -1
    fits = before >= 0 and shape == (*table.shape[:-2], before + new_side**2, table.shape[-1])
    if not fits or table.numel() != table.shape[-2] * table.shape[-1]:
        raise ValueError(
            f"{name} takes images of {own.image_size} px only, since its weights hang on that size: leave out "
            "--image-size, or give another backbone"
        )
    width = table.shape[-1]
    table_ND = table.reshape(-1, width)
    grid_1DGG = table_ND[before:].reshape(1, old_side, old_side, width).permute(0, 3, 1, 2)
    grid_1DGG = nn.functional.interpolate(
        grid_1DGG,
        (new_side, new_side),
        mode="bicubic",
        align_corners=False,
        antialias=own.model_type in _ANTIALIASED,
    )
    return torch.cat([table_ND[:before], grid_1DGG.permute(0, 2, 3, 1).reshape(-1, width)]).reshape(shape)


def _patches_a_side(architecture: Any) -> int:
    sizes = [getattr(architecture, key, None) or 1 for key in (IMAGE_SIZE, "patch_size")]
    image, patch = (max(size) if isinstance(size, list | tuple) else int(size) for size in sizes)
    return int(image // patch)


def _not_here(name: str) -> str:
    if Path(name).exists():
        return f"{name} is not a complete Hugging Face model folder: it needs config.json and model.safetensors"
    return f"the backbone {name} is not on this machine: download it first with `hf download {name}`"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' tables of keys and progress bars: what matters of them, our errors say."""
    logging: Any = _transformers().logging
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
