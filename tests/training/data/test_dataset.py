from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode.photo import DecodeTarget, decode_photo
from training.data.dataset import ArraySource, DrawOrder, PhotoStore, balanced_weights

TARGET = DecodeTarget(32, 36)


def names(archive: Path) -> list[str]:
    return sorted(str(path) for path in archive.glob("*.png"))


def test_pixels_are_the_serving_decodes_in_the_order_asked_for(archive: Path) -> None:
    uris = names(archive)
    store = PhotoStore(uris, TARGET)
    asked = [5, 0, 5, 17, 30, 2, 9]
    batches = list(store.batches(asked, 3))
    assert [len(rows) for rows, _ in batches] == [3, 3, 1]
    assert np.concatenate([rows for rows, _ in batches]).tolist() == asked
    pixels = np.concatenate([pixels for _, pixels in batches])
    for row, pixels_HWC in zip(asked, pixels, strict=True):
        assert np.array_equal(pixels_HWC, decode_photo(Path(uris[row]).read_bytes(), TARGET).pixels_HWC)


def test_photos_are_read_once_while_they_fit_in_memory(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes((archive / "red0.png").read_bytes())
    kept, not_kept = PhotoStore([str(path)], TARGET), PhotoStore([str(path)], TARGET, 1.0, memory_bytes=100)
    assert len(list(kept.batches([0], 1))) == len(list(not_kept.batches([0], 1))) == 1
    path.unlink()
    assert len(list(kept.batches([0], 1))) == 1
    [(rows, pixels)] = not_kept.batches([0], 1)
    assert len(rows) == 0
    assert pixels.shape == (0, 32, 32, 3)
    assert "No such file" in not_kept.failures[0]


def test_bad_photos_are_skipped_and_counted(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a photo")
    uris = [*names(archive)[:10], str(tmp_path / "text.jpg"), str(tmp_path / "missing.jpg")]
    store = PhotoStore(uris, TARGET, max_failed_fraction=0.2)
    rows = np.concatenate([rows for rows, _ in store.batches(range(12), 4)])
    assert rows.tolist() == list(range(10))
    assert set(store.failures) == {10, 11}
    assert "unsupported_format" in store.failures[10]


def test_too_many_bad_photos_stop_the_run_and_name_the_first(archive: Path, tmp_path: Path) -> None:
    uris = [str(tmp_path / "missing 1.jpg"), str(tmp_path / "missing 2.jpg"), *names(archive)[:10]]
    with pytest.raises(ValueError, match=r"2 of 12 photos could not be read, more than the 1 allowed.*missing 1"):
        list(PhotoStore(uris, TARGET, max_failed_fraction=0.1).batches(range(12), 4))


def test_no_rows_no_batches(archive: Path) -> None:
    assert list(PhotoStore(names(archive), TARGET).batches([], 4)) == []


def test_balance_moves_draws_from_photos_to_cells() -> None:
    cell_N = np.array([0] * 90 + [1] * 9 + [-1])
    by_cell = {
        balance: [round(float(balanced_weights(cell_N, balance)[cell_N == cell].sum()), 3) for cell in (0, 1, -1)]
        for balance in (0.0, 0.5, 1.0)
    }
    assert by_cell[0.0] == [0.9, 0.09, 0.01]
    assert by_cell[1.0] == [0.333, 0.333, 0.333]
    assert by_cell[0.5] == pytest.approx([x / (90**0.5 + 3 + 1) for x in (90**0.5, 3, 1)], abs=1e-3)
    assert Counter(balanced_weights(cell_N, 0.0).round(9).tolist()) == {0.01: 100}


def test_photos_in_memory_come_as_asked_for() -> None:
    pixels_NHWC = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    batches = list(ArraySource(pixels_NHWC).batches([4, 0, 0], 2))
    assert [rows.tolist() for rows, _ in batches] == [[4, 0], [0]]
    assert np.array_equal(batches[0][1], pixels_NHWC[[4, 0]])


def test_without_weights_an_epoch_draws_each_photo_once_in_an_order_of_its_own() -> None:
    rows_M = np.array([3, 5, 8, 9, 11, 20, 21])
    order = DrawOrder(rows_M, seed=1)
    first, second = order.rows(0, 7), order.rows(7, 14)
    assert sorted(first.tolist()) == sorted(second.tolist()) == rows_M.tolist()
    assert first.tolist() != second.tolist()
    assert DrawOrder(rows_M, seed=2).rows(0, 7).tolist() != first.tolist()


def test_draws_are_the_same_however_they_are_asked_for() -> None:
    weight_M = balanced_weights(np.array([0, 0, 0, 1, 1, 2]), 1.0)
    for weights in (None, weight_M):
        whole = DrawOrder(np.arange(6), 3, weights).rows(0, 40)
        parts = DrawOrder(np.arange(6), 3, weights)
        pieces = [parts.rows(first, min(first + 7, 40)) for first in range(0, 40, 7)]
        assert np.concatenate(pieces).tolist() == whole.tolist()
        assert parts.rows(11, 11).tolist() == []


def test_weights_draw_with_replacement_by_their_size() -> None:
    drawn = DrawOrder(np.arange(3), 0, np.array([0.5, 0.5, 0.0])).rows(0, 3000)
    counts = np.bincount(drawn, minlength=3)
    assert counts[2] == 0
    assert 1350 < counts[0] < 1650
