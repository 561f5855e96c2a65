"""Engines compiled ahead: what is written is what engines take, and what is printed says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.compile_engine import CompileSettings, run
from model.checkpoint import Checkpoint
from model.engines import Precision, cache, load_engine, onnx_graph, openvino_engine, tensorrt_engine
from pipeline.locate.locator import Locator, LocatorSettings, serving_checkpoint
from tests.support.photo_samples import china_image


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.load(tiny_checkpoint)


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_onnx_is_exported_once_and_taken_by_onnxruntime(
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "engines"
    settings = CompileSettings("onnx", str(output), str(checkpoint.folder))
    assert run(settings) == 0
    printed = capsys.readouterr().out
    (entry,) = output.iterdir()
    assert f"engines/{entry.name}: onnx fp32 of {checkpoint.model_id}\n" in printed
    assert f"--engines {output} --engine onnxruntime" in printed
    manifest = json.loads((entry / cache.MANIFEST_FILE).read_bytes())
    assert manifest["model_id"] == checkpoint.model_id
    assert manifest["fingerprint"] == onnx_graph.fingerprint(serving_checkpoint(checkpoint), "fp32")
    assert manifest["precision"] == "fp32"
    assert set(manifest["versions"]) == {"torch", "onnx", "onnxscript"}
    assert set(manifest["files"]) == {onnx_graph.GRAPH_FILE, onnx_graph.WEIGHTS_FILE}

    monkeypatch.setattr(onnx_graph, "export", lambda *_: pytest.fail("exported again"))
    assert run(settings) == 0
    assert capsys.readouterr().out == printed
    locator = Locator(
        LocatorSettings(
            str(checkpoint.folder),
            checkpoint.model_id,
            "r1",
            engine="onnxruntime",
            engine_cache=tmp_path / "cache",
            engine_share=str(output),
        )
    )
    expected = load_engine("torch", checkpoint, precision="fp32")(pixels(3))
    np.testing.assert_array_equal(locator.engine(pixels(3)).top_index_BT, expected.top_index_BT)


def test_openvinos_graph_spares_the_conversion(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "engines"
    assert run(CompileSettings("openvino", str(output), str(checkpoint.folder))) == 0
    (entry,) = output.iterdir()
    manifest = json.loads((entry / cache.MANIFEST_FILE).read_bytes())
    assert (manifest["engine"], manifest["model_id"]) == ("openvino", checkpoint.model_id)
    assert f"--engines {output} --engine openvino\n" in capsys.readouterr().out
    monkeypatch.setattr(openvino_engine, "export_program", lambda *_: pytest.fail("converted again"))
    located_by(checkpoint, tmp_path, output, "fp32").engine(pixels(1))


def test_int8_says_what_it_costs(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, photos = tmp_path / "engines", tmp_path / "photos"
    photos.mkdir()
    picture = china_image()
    for index in range(210):
        picture.crop((index, index, 40 + index, 40 + index)).save(photos / f"{index}.jpg")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    settings = CompileSettings(
        "openvino",
        str(output),
        str(checkpoint.folder),
        precision="int8",
        photos=str(photos),
        calibration_photos=210,
    )
    with pytest.raises(ValueError, match="has 210 readable photos, and int8 is to be made from 300"):
        run(dataclasses.replace(settings, calibration_photos=300))
    assert run(settings) == 0
    printed = capsys.readouterr().out
    assert "on 105 photos that ranges were not taken from, int8 beside fp32: " in printed
    assert "% in the same cell, moved by " in printed
    assert "--engine openvino --engine-precision int8\n" in printed
    monkeypatch.setattr(openvino_engine, "export_program", lambda *_: pytest.fail("converted again"))
    assert located_by(checkpoint, tmp_path, output, "int8").engine.precision == "int8"
    for wrong in (
        dataclasses.replace(settings, photos=None),
        dataclasses.replace(settings, precision="auto"),
        dataclasses.replace(settings, engine="onnx"),
    ):
        with pytest.raises(ValueError, match="int8"):
            run(wrong)


def located_by(checkpoint: Checkpoint, tmp_path: Path, engines: Path, precision: Precision) -> Locator:
    """A Locator of another machine, that shares these engines."""
    return Locator(
        LocatorSettings(
            str(checkpoint.folder),
            checkpoint.model_id,
            "r1",
            engine="openvino",
            engine_precision=precision,
            engine_cache=tmp_path / "elsewhere",
            engine_share=str(engines),
        )
    )


@pytest.mark.skipif(tensorrt_engine.trt is not None, reason="TensorRT is here")
def test_what_cannot_be_compiled_here_is_said(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tensorrt engine is not installed"):
        run(CompileSettings("tensorrt", str(tmp_path), str(checkpoint.folder)))
    with pytest.raises(ValueError, match="leave --precision out"):
        run(CompileSettings("openvino", str(tmp_path), str(checkpoint.folder), precision="bf16"))
    assert list(tmp_path.iterdir()) == []
