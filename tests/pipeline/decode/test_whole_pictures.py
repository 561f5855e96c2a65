"""What of a photo reaches the network, by how it is framed: the same in training and serving, and for any engine."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.backbones.backbone import Preprocessing
from model.backbones.framing import Framing
from model.checkpoint import Checkpoint
from model.engines import EngineName
from model.geodecoder import GeoDecoder
from pipeline import schema
from pipeline.decode.jpeg import read_jpeg_header
from pipeline.decode.photo import DecodeTarget, decode_photo
from pipeline.locate.locator import Locator, LocatorSettings
from pipeline.read.reader import IsolatedReader, Reader, ReaderSettings
from tests.support.photo_samples import camera_jpeg, china_image, china_jpeg, encode, flower_jpeg
from training.data.dataset import PhotoStore
from training.evaluate.evaluation import network_outputs

FRAMINGS = get_args(Framing)
SHAPES = [(640, 427), (427, 640), (640, 480), (960, 320), (300, 1000), (400, 400)]
GREEN, RED, BLUE = (0, 160, 0), (250, 0, 0), (0, 0, 250)


def target(framing: str, size_px: int = 96) -> DecodeTarget:
    return DecodeTarget.of(Preprocessing(size_px, size_px * 8 // 7, framing=framing))  # type: ignore[arg-type]


def marked(width_px: int, height_px: int) -> Image.Image:
    """Green, with the outermost tenths of its longer side red and blue."""
    image = Image.new("RGB", (width_px, height_px), GREEN)
    if width_px >= height_px:
        tenth = width_px // 10
        image.paste(RED, (0, 0, tenth, height_px))
        image.paste(BLUE, (width_px - tenth, 0, width_px, height_px))
    else:
        tenth = height_px // 10
        image.paste(RED, (0, 0, width_px, tenth))
        image.paste(BLUE, (0, height_px - tenth, width_px, height_px))
    return image


def share_of(pixels_HWC: NDArray[np.uint8], colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels_HWC.astype(int) - colour).max(axis=2) < 60).mean())


@pytest.mark.parametrize(("width_px", "height_px"), SHAPES)
@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_marks_in_the_outermost_tenths_reach_the_network(name: str, width_px: int, height_px: int) -> None:
    data = encode(marked(width_px, height_px), name)
    seen = {framing: decode_photo(data, target(framing)).pixels_HWC for framing in FRAMINGS}
    aspect = max(width_px, height_px) / min(width_px, height_px)
    for framing in ("letterbox", "squares"):
        squares = seen[framing].reshape(-1, 96, 96, 3)
        assert share_of(squares[0], RED) > 0.07 / aspect
        assert share_of(squares[-1], BLUE) > 0.07 / aspect
    if aspect > 1.3:
        assert share_of(seen["centre"], RED) == share_of(seen["centre"], BLUE) == 0


def test_a_letterbox_is_the_whole_frame_in_the_middle_and_the_mean_colour_beside_it() -> None:
    how = dataclasses.replace(target("letterbox"), fill_rgb=(10, 20, 30))
    pixels_HWC = decode_photo(encode(china_image(), "png"), how).pixels_HWC
    assert pixels_HWC.shape == (96, 96, 3)
    assert (pixels_HWC[:16] == (10, 20, 30)).all()
    assert (pixels_HWC[80:] == (10, 20, 30)).all()
    whole = np.asarray(china_image().resize((96, 64), Image.Resampling.BILINEAR, reducing_gap=3.0))
    assert np.array_equal(pixels_HWC[16:80], whole)
    assert Preprocessing(96, 110, mean_rgb=(0.5, 0.0, 1.5)).fill_rgb == (128, 0, 255)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_views_are_upright_and_in_order_whatever_the_orientation(framing: str, orientation: int) -> None:
    image = china_image().resize((1280, 848))  # whole blocks, wherever they begin
    turned = decode_photo(camera_jpeg(image, orientation), target(framing)).pixels_HWC
    plain = decode_photo(camera_jpeg(image), target(framing)).pixels_HWC
    assert np.abs(turned.astype(int) - plain).mean() < 1.0


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size_px", [(3000, 2000), (2048, 1536), (2400, 800)])
def test_shrinking_on_load_is_not_seen_in_any_framing(framing: str, size_px: tuple[int, int]) -> None:
    data = encode(china_image().resize(size_px, Image.Resampling.BICUBIC), "jpeg", quality=92)
    how = target(framing, 224)
    exact = decode_photo(data, dataclasses.replace(how, shrink_margin=float("inf"))).pixels_HWC.astype(int)
    ours = decode_photo(data, how).pixels_HWC.astype(int)
    one_pixel_aside = np.abs(exact[:, 1:] - exact[:, :-1]).mean()
    assert np.abs(ours - exact).mean() < min(2.5, one_pixel_aside / 3)


def test_no_more_is_loaded_than_the_views_need() -> None:
    header = read_jpeg_header(encode(Image.new("RGB", (2048, 1536)), "jpeg"))
    sides = {x: target(x, 224).least_side_px(header.width_px, header.height_px) for x in FRAMINGS}
    assert sides == {"centre": 256, "letterbox": 168, "squares": 224}
    assert target("squares", 224).least_side_px(3000, 1000) == pytest.approx(224 / 1.5)


def framed(checkpoint: Checkpoint, framing: Any, folder: Path) -> Checkpoint:
    """The tiny network, loud enough for its answers to differ, with another framing."""
    model = checkpoint.build_model()
    assert isinstance(model, GeoDecoder)
    how = dataclasses.replace(model.config.preprocessing, framing=framing)
    model.config = dataclasses.replace(model.config, preprocessing=how)
    reading = dataclasses.replace(checkpoint.reading, temperatures=(0.2, 0.2, 0.2))
    return Checkpoint.save(folder, model, checkpoint.hierarchy, reading, name="tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    wide = encode(china_image().crop((0, 100, 640, 300)), "png")
    for name, data in (("a.jpg", china_jpeg()), ("b.jpg", flower_jpeg()), ("c.png", wide)):
        (folder / name).write_bytes(data)
    return [str(path) for path in sorted(folder.iterdir())]


def read(uris: list[str], how: DecodeTarget, kind: type[Reader] = Reader) -> pa.Table:
    reader = kind(ReaderSettings(how))
    try:
        rows = [{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri} for uri in uris]
        return reader(pa.Table.from_pylist(rows, schema=schema.MANIFEST))
    finally:
        if isinstance(reader, IsolatedReader):
            reader.close()


@pytest.mark.parametrize("framing", ["letterbox", "squares"])
def test_training_and_serving_see_the_same_pixels(framing: str, photos: list[str]) -> None:
    how = target(framing)
    served = read(photos, how, IsolatedReader).column(schema.PIXELS_HWC).to_pylist()
    ((_, pixels_BHWC),) = PhotoStore(photos, how).batches(range(len(photos)), 8)
    assert pixels_BHWC.shape == (3, *how.shape_HWC)
    assert [pixels_HWC.tobytes() for pixels_HWC in pixels_BHWC] == served


@pytest.mark.parametrize("framing", ["letterbox", "squares"])
def test_every_engine_says_the_same_through_the_locator(
    framing: str, photos: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = framed(Checkpoint.load(tiny_checkpoint), framing, tmp_path / "model")
    table = read(photos, DecodeTarget.of(checkpoint.config.preprocessing))
    names: list[EngineName] = ["torch", "openvino"]
    # Of one view the graph is that of every other test; exporting it takes seconds.
    if framing == "squares" and all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnxscript")):
        names.append("onnxruntime")
    said = []
    for name in names:
        settings = LocatorSettings(
            str(checkpoint.folder), checkpoint.model_id, "r1", engine=name, engine_precision="fp32", batch_size=2
        )
        said.append(Locator(settings)(table).to_pylist())
    ((_, _, output),) = network_outputs(
        checkpoint.build_model(), PhotoStore(photos, DecodeTarget.of(checkpoint.config.preprocessing)), range(3)
    )
    coarse_BK = (output.logits[0] / 0.2).softmax(dim=1)
    for number, rows in enumerate(zip(*said, strict=True)):
        for row in rows:
            assert row[schema.LEVELS][0][schema.PROBABILITY] == pytest.approx(float(coarse_BK[number].max()), abs=1e-4)
            assert row[schema.CELL_ID] == rows[0][schema.CELL_ID]
            assert row[schema.CONFIDENCE] == pytest.approx(rows[0][schema.CONFIDENCE], abs=1e-4)
    assert len({round(row[schema.CONFIDENCE], 4) for row in said[0]}) > 1
