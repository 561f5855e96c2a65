"""The demo's little archive: real photographs that ship inside well-kept packages, and the trouble archives have."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from PIL import Image

_PACKAGED = (
    ("china.jpg", "sklearn", "datasets/images/china.jpg", "scikit-learn: the Summer Palace, Beijing"),
    ("flower.jpg", "sklearn", "datasets/images/flower.jpg", "scikit-learn: a dahlia"),
    ("rocket.jpg", "skimage", "data/rocket.jpg", "scikit-image: a SpaceX launch at Cape Canaveral"),
    ("coffee.png", "skimage", "data/coffee.png", "scikit-image: a cup of coffee"),
    ("chelsea.png", "skimage", "data/chelsea.png", "scikit-image: Chelsea the cat"),
    ("grace_hopper.jpg", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "matplotlib: Grace Hopper"),
)
_ORIENTATION_TAG, _TURN_RIGHT_TO_SEE = 0x0112, 6


def write_demo_archive(folder: Path) -> list[tuple[str, str]]:
    """Write the demo's photos into `folder` (made when absent) and return each one's name and where it comes from.

    Six photographs as their packages ship them, and beside them a copy as a turned camera would store it, a truncated
    copy, a text that calls itself a photo and an empty file. Raises ValueError when a package is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[tuple[str, str]] = []
    for name, package, path, origin in _PACKAGED:
        (folder / name).write_bytes((_package_folder(package) / path).read_bytes())
        written.append((name, origin))
    china = (folder / "china.jpg").read_bytes()
    with Image.open(folder / "china.jpg") as image:
        exif = Image.Exif()
        exif[_ORIENTATION_TAG] = _TURN_RIGHT_TO_SEE
        turned = image.transpose(Image.Transpose.ROTATE_90)
        turned.save(folder / "china turned.jpg", quality=92, exif=exif)
    (folder / "china truncated.jpg").write_bytes(china[: len(china) * 2 // 3])
    (folder / "not a photo.jpg").write_text("This is text, whatever its name says.\n", encoding="utf-8")
    (folder / "empty.jpg").write_bytes(b"")
    return [
        *written,
        ("china turned.jpg", "china.jpg as a turned camera stores it, with EXIF orientation 6"),
        ("china truncated.jpg", "the first two thirds of china.jpg's bytes"),
        ("not a photo.jpg", "a line of text"),
        ("empty.jpg", "nothing at all"),
    ]


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f'the demo takes photos from {package}, which is missing: pip install "graticule[demo]"')
    return Path(spec.submodule_search_locations[0])
