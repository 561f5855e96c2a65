"""How photos are usually put through a network, as the tools' documentation shows it; `jobs.benchmark ways` runs it.

    python -m jobs.benchmark.other_ways ray|daft|dataloader ORDER.json ANSWERS.json

Each way does what Graticule does for a photo: decode it, resize its shorter side to the model's `resize_px`, cut the
centre square, run the network and its read-out, give the finest cell and its probability. All take the same weights, in
eager fp32 torch, because that is what the documentation's examples do, and pictures whole, because their decoders do.

ray: docs.ray.io, "Working with images" and "End-to-end: offline batch inference" (2.60): `read_images`, a `map` that
    transforms, a class in an actor pool. One actor a core, each with one thread, as Ray sets it. `ray.init` gets twice
    the cores there are, else the actors would take them all and no photo would ever be read.
daft: docs.daft.ai, "Multimodal" and the batch inference examples: `url.download`, `image.decode`, `image.resize`, a
    class UDF. Its resize takes constants: photos of other shapes than the first are squeezed into that one's.
dataloader: pytorch.org, "Datasets & DataLoaders": a Dataset with PIL, a worker process a core, the network in the main
    process with as many threads as there are cores.

Not here: torchvision, which the examples use for the transforms. The same steps are done in PIL and numpy.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.backbones.backbone import Preprocessing
from model.checkpoint import Checkpoint
from model.readout import ReadOut

BATCH_SIZE = 32
Answers = Iterator[tuple[str, int, float]]
"""For each photo its path, the index of its finest cell, and that cell's probability."""


class Network:
    """The checkpoint's network and read-out in eager fp32."""

    def __init__(self, folder: str) -> None:
        checkpoint = Checkpoint.load(Path(folder))
        self._model = checkpoint.build_model().eval()
        self._read_out = ReadOut(checkpoint.hierarchy, checkpoint.reading).eval()

    def __call__(self, pixels_BCHW: torch.Tensor) -> tuple[list[int], list[float]]:
        with torch.inference_mode():
            answers = self._read_out(self._model(pixels_BCHW))
        return answers.top_index_BT[:, 0].tolist(), answers.top_probability_BT[:, 0].tolist()


def transformed(picture: Image.Image, how: Preprocessing) -> NDArray[np.float32]:
    """Return pixels_CHW as torchvision's Resize, CenterCrop, ToTensor and Normalize make them."""
    scale = how.resize_px / min(picture.size)
    resized = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
    return _normalised(_centre(np.asarray(resized), how.image_size_px), how)


def _centre(pixels_HWC: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    top, left = (pixels_HWC.shape[0] - size_px) // 2, (pixels_HWC.shape[1] - size_px) // 2
    return pixels_HWC[top : top + size_px, left : left + size_px]


def _normalised(pixels_HWC: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.float32]:
    mean, std = np.array(how.mean_rgb, np.float32), np.array(how.std_rgb, np.float32)
    return np.ascontiguousarray(((pixels_HWC.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))


def with_dataloader(paths: list[str], model: str, how: Preprocessing, cores: int) -> Answers:
    """Yield the answers of a plain script with torch's DataLoader."""
    photos = torch.utils.data.DataLoader(_Photos(paths, how), batch_size=BATCH_SIZE, num_workers=cores)
    torch.set_num_threads(cores)
    network = Network(model)
    for names, pixels_BCHW in photos:
        yield from zip(names, *network(pixels_BCHW), strict=True)


class _Photos(torch.utils.data.Dataset[tuple[str, torch.Tensor]]):
    def __init__(self, paths: list[str], how: Preprocessing) -> None:
        self._paths, self._how = paths, how

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        with Image.open(self._paths[index]) as picture:
            return self._paths[index], torch.from_numpy(transformed(picture.convert("RGB"), self._how))


def with_ray(paths: list[str], model: str, how: Preprocessing, cores: int) -> Answers:
    """Yield the answers of Ray Data's documented batch inference."""
    import ray.data

    def transform(row: dict[str, Any]) -> dict[str, Any]:
        return {"path": row["path"], "transformed_image": transformed(Image.fromarray(row["image"]), how)}

    ray.init(num_cpus=2 * cores, include_dashboard=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    predictions = (
        ray.data.read_images(paths, mode="RGB", include_paths=True)
        .map(transform)
        .map_batches(
            _RayPredictor,
            fn_constructor_args=(model,),
            compute=ray.data.ActorPoolStrategy(size=cores),
            batch_size=BATCH_SIZE,
        )
    )
    for row in predictions.iter_rows():
        yield row["path"], int(row["cell"]), float(row["probability"])


class _RayPredictor:
    def __init__(self, model: str) -> None:
        self._network = Network(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        cells, probabilities = self._network(torch.from_numpy(np.stack(batch["transformed_image"])))
        return {"path": batch["path"], "cell": np.array(cells), "probability": np.array(probabilities)}


def with_daft(paths: list[str], model: str, how: Preprocessing, cores: int) -> Answers:
    """Yield the answers of Daft's documented image pipeline."""
    import daft
    from daft import DataType, col

    daft.set_runner_native()

    class Predictor:
        def __init__(self) -> None:
            torch.set_num_threads(cores)
            self._network = Network(model)

        def __call__(self, images: Any) -> list[dict[str, Any]]:
            pixels = [_normalised(_centre(image, how.image_size_px), how) for image in images.to_pylist()]
            answers = self._network(torch.from_numpy(np.stack(pixels)))
            return [{"cell": cell, "probability": share} for cell, share in zip(*answers, strict=True)]

    answer = DataType.struct({"cell": DataType.int64(), "probability": DataType.float64()})
    predict: Any = daft.udf(return_dtype=answer, batch_size=BATCH_SIZE, concurrency=1)(Predictor)
    with Image.open(paths[0]) as first:
        scale = how.resize_px / min(first.size)
        width_px, height_px = round(first.width * scale), round(first.height * scale)
    photos = daft.from_pydict({"path": paths})
    photos = photos.with_column("image", col("path").url.download().image.decode(mode="RGB"))
    photos = photos.with_column("image", col("image").image.resize(width_px, height_px))
    photos = photos.with_column("answer", predict(col("image"))).select("path", "answer")
    for row in photos.to_pylist():
        yield row["path"], row["answer"]["cell"], row["answer"]["probability"]


WAYS: dict[str, Callable[[list[str], str, Preprocessing, int], Answers]] = {
    "ray": with_ray,
    "daft": with_daft,
    "dataloader": with_dataloader,
}


def main(way: str, order_file: str, answers_file: str) -> None:
    """Go a way over the photos of an order; write the seconds from its start, imports excluded, and its answers."""
    order = json.loads(Path(order_file).read_text())
    how = Checkpoint.load(Path(order["model"])).config.preprocessing
    if way == "daft":
        import daft  # noqa: F401 - as for the others, its import is no part of the work
    elif way == "ray":
        import ray.data  # noqa: F401
    start_s = time.perf_counter()
    answers = list(WAYS[way](order["paths"], order["model"], how, os.cpu_count() or 1))
    seconds = time.perf_counter() - start_s
    Path(answers_file).write_text(json.dumps({"seconds": seconds, "answers": answers}))


if __name__ == "__main__":
    # Under the name by which other processes can import it: what is sent to them is not of `__main__`.
    from jobs.benchmark import other_ways

    other_ways.main(*sys.argv[1:])
