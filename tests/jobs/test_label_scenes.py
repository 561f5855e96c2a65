"""Scene labels by a Places365 network of random weights and the true shape: what is written is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs import label_scenes
from jobs.label_scenes import Settings
from model.geodecoder import SCENES_3, SCENES_16
from pipeline.decode.photo import DecodeTarget
from tests.support.photo_samples import china_jpeg, flower_jpeg
from training.data.dataset import PhotoStore
from training.data.labelled import labelled_photos
from training.data.places_network import PREPROCESSING, PlacesNetwork, _ResNet, groups, summed_BG

RESNET_18 = [2, 2, 2, 2]


@pytest.fixture(scope="module")
def resnet() -> _ResNet:
    torch.manual_seed(0)
    network = _ResNet(RESNET_18, is_deep=False).eval()
    with torch.no_grad():  # random weights say nearly the same of every photo
        network.fc.weight.mul_(20)
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, resnet: _ResNet) -> Path:
    """Photos, one of them cut short; and the network as Places365 publishes its networks."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "china.jpg").write_bytes(china_jpeg())
    (folder / "flower.jpg").write_bytes(flower_jpeg())
    (folder / "cut.jpg").write_bytes(china_jpeg()[:9000])
    lines = ["path,lat,lon", "china.jpg,40,116", "cut.jpg,1,2", "flower.jpg,3,4"]
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    weights = {f"module.{name}": tensor for name, tensor in resnet.state_dict().items()}
    torch.save({"arch": "resnet18", "epoch": 90, "state_dict": weights}, folder / "resnet18_places365.pth.tar")
    return folder


def settings(folder: Path, network: str, output: Path, failed: float = 0.5) -> Settings:
    return Settings(folder / network, str(folder / "photos.csv"), str(output), max_failed_fraction=failed)


def test_every_photo_has_its_row_and_the_groups_are_sums(
    folder: Path, resnet: _ResNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scenes.parquet"
    assert label_scenes.run(settings(folder, "resnet18_places365.pth.tar", output)) == 0
    rows = pq.read_table(output).to_pylist()
    assert [row["path"] for row in rows] == ["china.jpg", "cut.jpg", "flower.jpg"]
    assert {value for name, value in rows[1].items() if name != "path"} == {None}
    store = PhotoStore([str(folder / "china.jpg"), str(folder / "flower.jpg")], DecodeTarget.of(PREPROCESSING))
    ((_, pixels_BSSC),) = store.batches([0, 1], 2)
    with torch.no_grad():
        rgb_BCSS = torch.from_numpy(pixels_BSSC).permute(0, 3, 1, 2).float() / 255
        expected_BP = resnet(rgb_BCSS).softmax(dim=1).double().numpy()
    for row, p_P in zip((rows[0], rows[2]), expected_BP, strict=True):
        by_16, by_3 = np.zeros(16), np.zeros(3)
        np.add.at(by_16, groups(16), p_P)
        np.add.at(by_3, groups(3), p_P)
        assert (row["S365_Label"], row["S16_Label"]) == (p_P.argmax(), by_16.argmax())
        assert row["S3_Label"] == by_3.argmax()
        said = [row[f"Prob_{scene}"] for scene in SCENES_3]
        assert said == pytest.approx(by_3.tolist(), abs=1e-4)
        assert sum(said) == pytest.approx(1)
    out = capsys.readouterr().out
    assert "2 of 3 photos labelled" in out
    assert "not labelled: cut.jpg" in out
    assert f"  {SCENES_16[rows[0]['S16_Label']]}" in out

    # It is what training takes, for networks of 16 and of 3 scenes.
    for vocabulary, column in ((SCENES_16, "S16_Label"), (SCENES_3, "S3_Label")):
        photos = labelled_photos(str(folder / "photos.csv"), scenes=str(output), vocabulary=vocabulary)
        assert photos.scene_N == (vocabulary[rows[0][column]], None, vocabulary[rows[2][column]])


@pytest.mark.filterwarnings("ignore:.*treespec.*LeafSpec:FutureWarning")  # torch.onnx of itself
def test_onnx_says_the_same(folder: Path, resnet: _ResNet, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    class Logits(torch.nn.Module):
        """Of normalised images, as networks are exported."""

        def forward(self, image_BCSS: torch.Tensor) -> torch.Tensor:
            logits_BP: torch.Tensor = resnet(image_BCSS * resnet.std_C11 + resnet.mean_C11)
            return logits_BP

    module = Logits()
    module.resnet = resnet
    example = torch.zeros(2, 3, 224, 224)
    batch = {"image_BCSS": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        module.eval(), (example,), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=batch, verbose=False
    )
    pixels_BSSC = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    plain = PlacesNetwork(folder / "resnet18_places365.pth.tar")(pixels_BSSC)
    np.testing.assert_allclose(PlacesNetwork(tmp_path / "net.onnx")(pixels_BSSC), plain, atol=0.01)


def test_deeper_networks_have_three_convolutions_a_block(tmp_path: Path) -> None:
    deep = _ResNet([1, 1, 1, 1], is_deep=True)
    assert deep.state_dict()["layer4.0.conv3.weight"].shape == (2048, 512, 1, 1)
    torch.save(deep.state_dict(), tmp_path / "deep.pth")
    probability_BP = PlacesNetwork(tmp_path / "deep.pth")(np.zeros((1, 224, 224, 3), np.uint8))
    assert probability_BP.shape == (1, 365)
    assert probability_BP.sum() == pytest.approx(1)


def test_groups_are_of_all_categories() -> None:
    assert set(groups(16).tolist()) == set(range(16)) - {9}  # no category's photos are mostly of that group
    assert set(groups(3).tolist()) == set(range(3))
    even_1P = np.full((1, 365), 1 / 365)
    assert summed_BG(even_1P, 16).sum() == pytest.approx(1)
    assert summed_BG(even_1P, 3)[0, 0] == pytest.approx((groups(3) == 0).mean())


def test_what_is_no_such_network_is_said_in_one_line(folder: Path, resnet: _ResNet, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 512)}, tmp_path / "imagenet.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(resnet.state_dict() | {"layer9.0.conv1.weight": torch.zeros(1)}, tmp_path / "odd.pth")
    torch.save(resnet, tmp_path / "pickled.pth")
    (tmp_path / "cut.pth").write_bytes((folder / "resnet18_places365.pth.tar").read_bytes()[:5000])
    (tmp_path / "text.onnx").write_text("no network")
    for name, said in (
        ("imagenet.pth", "has 1000 outputs"),
        ("other.pth", "has no layer fc"),
        ("odd.pth", "is not a plain ResNet"),
        ("pickled.pth", "holds more than tensors"),
        ("cut.pth", "or is damaged"),
        ("missing.pth", "cannot be read"),
        ("text.onnx", "is not an ONNX network"),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            PlacesNetwork(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"ends in \.parquet"):
        label_scenes.run(settings(folder, "resnet18_places365.pth.tar", tmp_path / "scenes.csv"))
    with pytest.raises(ValueError, match=r"could not be read|failed"):
        label_scenes.run(settings(folder, "resnet18_places365.pth.tar", tmp_path / "few.parquet", failed=0.1))
    assert not (tmp_path / "few.parquet").exists()
