"""The serving graph that every engine runs: uint8 pixels in, answers out.

Shapes: B batch · H, W height and width · C 3 colours · K the finest level's cells.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model import decoder, gallery, geodecoder, networks, readout
from model.backbones import backbone, efficientnet_lite, framing, hugging_face, tower
from model.checkpoint import Checkpoint
from model.engines import Engine, NumpyAnswers
from model.networks import in_dtype
from model.readout import Answers, ReadOut
from model.world import geodesy, prior


class ServingGraph(nn.Module):
    """pixels_BHWC (uint8 RGB) → the fields of `Answers`, as a tuple, in its order.

    H holds a photo's views, one below the other: the network looks at each, and what is read is the mean of its logits.
    Normalisation and read-out compute in fp32; the network computes in `network_dtype`.
    """

    def __init__(self, checkpoint: Checkpoint, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        preprocessing = checkpoint.config.preprocessing
        self.shape_HWC, self.views = preprocessing.shape_HWC, preprocessing.views
        self.network_dtype = network_dtype
        self.network = in_dtype(checkpoint.build_model(), network_dtype)
        self.read_out = ReadOut(checkpoint.hierarchy, checkpoint.reading, checkpoint.group_K)
        mean_C, std_C = torch.tensor(preprocessing.mean_rgb), torch.tensor(preprocessing.std_rgb)
        self.scale_C11: Tensor
        self.register_buffer("scale_C11", (1.0 / (255.0 * std_C))[:, None, None])
        self.shift_C11: Tensor
        self.register_buffer("shift_C11", (mean_C / std_C)[:, None, None])
        self.eval()

    def forward(self, pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        if self.views > 1:
            size = self.shape_HWC[1]
            pixels_BHWC = pixels_BHWC.reshape(-1, size, size, 3)
        return tuple(self.read_out(self.network(self.normalised(pixels_BHWC)).averaged(self.views)))

    def normalised(self, pixels_BHWC: Tensor) -> Tensor:
        """normalised_BCHW, as the network was trained with.

        Bytes change places before they become numbers, four times as large, and a division is a product: an eighth of a
        small network's time.
        """
        return (pixels_BHWC.permute(0, 3, 1, 2).float() * self.scale_C11 - self.shift_C11).to(self.network_dtype)


def plain_attention() -> contextlib.AbstractContextManager[None]:
    """Attention by its plain kernel, for whatever traces a graph.

    Fused kernels lay their output out in another order, on which an exported program's views would then rely; and torch
    remembers such layouts for as long as the process lives.
    """
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)


def export_program(graph: ServingGraph) -> torch.export.ExportedProgram:
    """`graph` as one torch program whose batch size is free."""
    example_BHWC = torch.zeros((2, *graph.shape_HWC), dtype=torch.uint8)  # 2: torch.export takes 0 and 1 for constants
    with torch.no_grad(), plain_attention():
        return torch.export.export(graph, (example_BHWC,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def graph_fingerprint(checkpoint: Checkpoint) -> str:
    """A name for what `export_program` makes: the checkpoint's id, and a hash of groups and code that shape the graph.

    A compiled graph kept under this name is never older than the code that asks for it.
    """
    digest = hashlib.sha256(f"{torch.__version__} {hugging_face.version()}".encode())
    ours = (
        *(backbone, decoder, efficientnet_lite, framing, gallery, geodecoder, geodesy),
        *(hugging_face, networks, prior, readout, tower),
    )
    for module in (*ours, sys.modules[__name__]):
        digest.update(inspect.getsource(module).encode())
    if checkpoint.group_K is not None:
        digest.update(checkpoint.group_K.astype(np.int64).tobytes())
    return f"{checkpoint.model_id}-{digest.hexdigest()[:8]}"


def manifest(
    checkpoint: Checkpoint, engine: str, fingerprint: str, precision: str, **versions: str
) -> dict[str, object]:
    """What an entry of the cache of compiled engines says of itself, besides its files."""
    return {
        "engine": engine,
        "model_id": checkpoint.model_id,
        "fingerprint": fingerprint,
        "precision": precision,
        "image_size_px": checkpoint.config.preprocessing.image_size_px,
        "framing": checkpoint.config.preprocessing.framing,
        "versions": {"torch": torch.__version__, **versions},
    }


def require_pixels(pixels_BHWC: npt.NDArray[np.uint8], shape_HWC: tuple[int, int, int]) -> None:
    """Assert that a batch is what an engine takes: the reader makes it, so anything else is our mistake."""
    assert pixels_BHWC.dtype == np.uint8, f"pixels must be uint8, not {pixels_BHWC.dtype}"
    assert pixels_BHWC.ndim == 4, f"pixels must have 4 axes, not the shape {pixels_BHWC.shape}"
    assert pixels_BHWC.shape[1:] == shape_HWC, f"pixels must be {shape_HWC}, not {pixels_BHWC.shape[1:]}"


def no_answers(engine: Engine) -> NumpyAnswers:
    """The answers for a batch of no photos, which compiled graphs need not accept: those for one, without its row."""
    blank_BHWC = np.zeros((1, *engine.shape_HWC), dtype=np.uint8)
    return Answers(*(field[:0] for field in engine(blank_BHWC)))
