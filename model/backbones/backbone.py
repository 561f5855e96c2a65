"""The image encoder: pixels become tokens, by any Hugging Face vision model that returns a last hidden state.

Shapes: B batch · C 3 colours · H, W height and width in pixels · N image tokens · D token width.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from model.backbones import efficientnet_lite, hugging_face
from model.backbones.framing import VIEWS, Framing

IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)

_POST_NORMS = ("post_layernorm", "layernorm", "pooler.layernorm")
"""Where networks keep the normalisation that they apply to a pooled token alone: CLIP, ConvNeXt, BEiT."""


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes pixels; training and serving both read it from here.

    Every view is `image_size_px` squared. Framed by its centre, a photo's shorter side is resized to `resize_px`, and
    the centre is cut out; `letterbox` and `squares` show all of it, and `resize_px` is for ten crops alone. A channel's
    value is (x / 255 - mean) / std.

    Raises:
        ValueError: a crop larger than the resized photo, a standard deviation that is not positive, another framing.
    """

    image_size_px: int
    resize_px: int
    mean_rgb: tuple[float, float, float] = IMAGENET_MEAN_RGB
    std_rgb: tuple[float, float, float] = IMAGENET_STD_RGB
    framing: Framing = "centre"

    @property
    def views(self) -> int:
        """How many square pictures the network looks at of each photo."""
        return VIEWS[self.framing]

    @property
    def shape_HWC(self) -> tuple[int, int, int]:
        """The shape of a photo's pixels: its views, one below the other."""
        return self.views * self.image_size_px, self.image_size_px, 3

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """The colour of what lies beside a letterboxed photo: the mean, which the network sees as nothing."""
        red, green, blue = (min(255, max(0, round(255 * mean))) for mean in self.mean_rgb)
        return red, green, blue

    def to_json(self) -> dict[str, Any]:
        """This preprocessing as plain JSON values.

        `centre` is not written: it is what checkpoints mean that were made before there was a choice, and their ids are
        hashes of what is written.
        """
        values = asdict(self)
        if self.framing == "centre":
            del values["framing"]
        return values

    def __post_init__(self) -> None:
        if self.framing not in get_args(Framing):
            raise ValueError(f"framing must be one of {', '.join(get_args(Framing))}, not {self.framing!r:.50}")
        if not 1 <= self.image_size_px <= self.resize_px:
            raise ValueError(
                f"image_size_px {self.image_size_px} must be at least 1 and at most resize_px {self.resize_px}"
            )
        if len(self.mean_rgb) != 3 or len(self.std_rgb) != 3:
            raise ValueError("mean_rgb and std_rgb need three numbers each: red, green, blue")
        if not all(math.isfinite(x) for x in (*self.mean_rgb, *self.std_rgb)) or min(self.std_rgb) <= 0:
            raise ValueError(f"mean_rgb must be finite and std_rgb positive, not {self.mean_rgb} and {self.std_rgb}")


@dataclass(frozen=True)
class BackboneConfig:
    """Which encoder: either an architecture spelled inline, or a Hugging Face model by name or local folder.

    Inline (`model_type` and `overrides` of that type's defaults) needs no hub and starts from random weights. With
    `name` the architecture is read from a local folder or from the local Hugging Face cache, never from the network,
    and its weights too if `pretrained`.

    Raises:
        ValueError: not exactly one of `model_type` and `name`; `pretrained` without `name`.
    """

    model_type: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    pretrained: bool = False

    def __post_init__(self) -> None:
        if bool(self.model_type) == bool(self.name):
            raise ValueError("a backbone needs either model_type (an inline architecture) or name (a model or folder)")
        if self.pretrained and not self.name:
            raise ValueError(f"an inline {self.model_type} has no pretrained weights: give the backbone's name instead")


class Backbone(nn.Module):
    """pixels_BCHW (normalised floats) → tokens_BND; grids of convolutional networks are flattened row by row.

    The tokens are the network's last hidden state, each normalised by what the network itself would normalise a pooled
    one with. What they don't depend on (poolers, heads, mask tokens) is left out, or frozen: no gradient would ever
    reach it, which DistributedDataParallel refuses.

    Attributes:
        config: always the inline form of what was built, so that a checkpoint that stores it needs no hub.
        tokens: N, for images of `image_size_px`.
        width: D.

    Raises:
        ValueError: an unknown architecture or setting; a named model that is not on this machine, or lacks weights.
    """

    def __init__(self, config: BackboneConfig, image_size_px: int) -> None:
        super().__init__()
        self.model, self.config, missing = _built(config, image_size_px)
        shape, unused = _probed(self.model, image_size_px, self.config.model_type)
        self.post_norm = _post_norm(self.model, unused, shape)
        _leave_out(self.model, unused)
        # A normalisation of pooled tokens that was not stored begins as a plain one: that is no weight to miss.
        needed = missing & set(self.model.state_dict())
        if needed:
            raise ValueError(
                f"{config.name} lacks {len(needed)} of the weights that a {self.config.model_type} needs, among them "
                f"{min(needed)}: download it again, or give another folder"
            )
        _, still_unused = _probed(self.model, image_size_px, self.config.model_type)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in still_unused)
        self.tokens, self.width = _tokens_shape(shape)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        hidden: Tensor = self.model(pixel_values=pixels_BCHW).last_hidden_state
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        tokens_BND: Tensor = self.post_norm(hidden)
        return tokens_BND


class LeftOut(nn.Module):
    """In the place of a part that nothing depends on: what it is given first, it gives back."""

    def forward(self, first: Any = None, *others: Any, **more: Any) -> Any:
        return first


def _built(config: BackboneConfig, image_size_px: int) -> tuple[nn.Module, BackboneConfig, set[str]]:
    """The network, its inline form, and the names of weights that a pretrained one should have and has not."""
    if config.name == efficientnet_lite.NAME or config.model_type == efficientnet_lite.MODEL_TYPE:
        if config.overrides:
            raise ValueError(f"{efficientnet_lite.MODEL_TYPE} has no settings: leave {', '.join(config.overrides)} out")
        lite = efficientnet_lite.EfficientNetLite0()
        if config.pretrained:
            lite.load_state_dict(efficientnet_lite.pretrained_weights())
        return lite, BackboneConfig(efficientnet_lite.MODEL_TYPE), set()
    architecture = hugging_face.architecture(config.model_type, config.name, config.overrides, image_size_px)
    try:
        model = hugging_face.network(architecture)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        label = config.name or config.model_type
        raise ValueError(f"cannot build the backbone {label}: {_short(error)}") from error
    missing = hugging_face.load_weights(model, config.name, architecture) if config.pretrained else set()
    return model, BackboneConfig(architecture.model_type, hugging_face.settings(architecture)), missing


@torch.inference_mode(False)
def _probed(model: nn.Module, image_size_px: int, label: str) -> tuple[torch.Size, set[str]]:
    """The shape of the last hidden state of one image, and the names of the parameters that no gradient of it reaches.

    Without memory or time for either, on torch's meta device: only shapes are computed.
    """
    parameters = {
        name: torch.empty_like(x, device="meta").requires_grad_(x.is_floating_point())
        for name, x in model.named_parameters()
    }
    buffers = {name: torch.empty_like(x, device="meta") for name, x in model.named_buffers()}
    pixels_BCHW = torch.empty(1, 3, image_size_px, image_size_px, device="meta")
    was_training = model.training
    model.eval()  # stochastic depth skips layers
    try:
        with torch.enable_grad():
            output: Any = torch.func.functional_call(model, parameters | buffers, (), {"pixel_values": pixels_BCHW})
            hidden: Tensor = output.last_hidden_state
            learned = [x for x in parameters.values() if x.requires_grad]
            gradients = torch.autograd.grad(hidden.sum(), learned, allow_unused=True)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the backbone {label} does not accept {image_size_px} px images, and nothing else: {_short(error)}"
        ) from error
    finally:
        model.train(was_training)
    reached = {id(x) for x, gradient in zip(learned, gradients, strict=True) if gradient is not None}
    return hidden.shape, {name for name, x in parameters.items() if id(x) not in reached}


def _tokens_shape(hidden: torch.Size) -> tuple[int, int]:
    """N and D of a last hidden state, BND or BDHW."""
    return (hidden[2] * hidden[3], hidden[1]) if len(hidden) == 4 else (hidden[1], hidden[2])


def _post_norm(model: nn.Module, unused: set[str], shape: torch.Size) -> nn.Module:
    """The normalisation that only a pooled token goes through, for all tokens; nothing where there is none."""
    modules = dict(model.named_modules())
    norms = [modules.get(name) for name in _POST_NORMS if f"{name}.weight" in unused]
    width = _tokens_shape(shape)[1:]
    fitting = (norm for norm in norms if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == width)
    return next(fitting, nn.Identity())


def _leave_out(model: Any, unused: set[str]) -> None:
    """Replace every part whose parameters are all unused, and remove mask tokens of masked pretraining."""
    for name, part in list(model.named_children()):
        names = {f"{name}.{inner}" for inner, _ in part.named_parameters()}
        if names and names <= unused:
            setattr(model, name, LeftOut())
        elif names & unused:
            _leave_out(part, {inner.removeprefix(f"{name}.") for inner in names & unused})
    if "mask_token" in unused:
        model.mask_token = None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
