"""A pretrained network whose features a student learns to reproduce; it is only ever run, never stored or shipped.

Shapes: B batch, C 3 colours, S input size in pixels, D width of the features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.backbones.backbone import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from model.engines.openvino_engine import core


class Teacher:
    """An ONNX network from normalised BCSS images (ImageNet mean and std) to pooled features BD, run by OpenVINO.

    `size_px` and `width` are read from it. Raises ValueError for a file that is no such network.
    """

    def __init__(self, onnx_file: Path, threads: int | None = None) -> None:
        settings = {"PERFORMANCE_HINT": "LATENCY", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
        try:
            network = core().read_model(onnx_file)
            shape, out = network.input().partial_shape, network.output().partial_shape
            self.size_px, self.width = shape[2].get_length(), out[1].get_length()
            self._request = core().compile_model(network, "CPU", settings).create_infer_request()
        except (RuntimeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{onnx_file} is not an ONNX network from images to features: {reason}") from error
        self._mean_C11 = torch.tensor(IMAGENET_MEAN_RGB)[:, None, None]
        self._std_C11 = torch.tensor(IMAGENET_STD_RGB)[:, None, None]

    def __call__(self, rgb_BCSS: Tensor) -> Tensor:
        """Return features BD, float32, of RGB images from 0 to 1."""
        normalised = ((rgb_BCSS - self._mean_C11) / self._std_C11).contiguous().numpy()
        features_BD: np.ndarray[tuple[int, int], np.dtype[np.float32]] = self._request.infer([normalised])[0]
        return torch.from_numpy(features_BD.copy())
