"""How a photo of any shape becomes the square pictures that a network looks at. Geometry alone: no pixels, no torch.

centre      one square out of the middle, as the field does it: a third of a 3:2 photo and more is never seen
letterbox   one picture of the whole frame, made as large as fits, with bars of the network's mean colour beside it
squares     two squares at the two ends of the frame, which overlap in the middle; the network looks at each, and its
            logits are averaged
five-crops  four corners and the centre, for the ten crops of the field's evaluations: never a model's own framing

A model has as many views of every photo. With two for some photos and three for others a batch would have no shape that
an engine could be compiled for, and its costs would hang on who sends what. So a frame of more than 2:1, whose two end
squares would leave a gap, is cut into halves, and each is letterboxed: nothing of it is left out either.

Averaging logits is averaging log-probabilities: the two differ by one number a photo, level and view, which the softmax
that follows takes out. So a place has to be plausible in both views, as it has to be in both ends of one picture; the
ten crops of the paper are averaged in the same way.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Framing = Literal["centre", "letterbox", "squares"]
"""How a model's photos are framed."""
Cut = Literal["centre", "letterbox", "squares", "five-crops"]
"""A framing, or what evaluations alone use."""
FIVE_CROPS: Cut = "five-crops"
VIEWS: dict[Cut, int] = {"centre": 1, "letterbox": 1, "squares": 2, "five-crops": 5}
"""How many square pictures the network looks at of each photo."""

_FLIPPED_ACROSS, _FLIPPED_DOWN, _FIRST_TURNED = (2, 3, 6, 7), (3, 4, 7, 8), 5
_CORNERS_AND_CENTRE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))


class Box(NamedTuple):
    """A part of a photo, in its pixels. `across` and `down`: how much of the room beside it lies to its left and above
    it, from 0 to 1, so that turning a photo moves no centre by a rounding error."""

    width_px: float
    height_px: float
    across: float = 0.5
    down: float = 0.5

    def stored(self, orientation: int) -> Box:
        """Return where this part of the upright photo lies in the photo as stored, by its EXIF orientation."""
        width_px, height_px, across, down = self
        across = 1 - across if orientation in _FLIPPED_ACROSS else across
        down = 1 - down if orientation in _FLIPPED_DOWN else down
        if orientation >= _FIRST_TURNED:
            return Box(height_px, width_px, down, across)
        return Box(width_px, height_px, across, down)


def boxes(cut: Cut, width_px: int, height_px: int, crop_share: float) -> list[Box]:
    """Return the parts of an upright photo that become its views, from left to right or from top to bottom.

    `crop_share`: the side of a crop as a share of the photo's shorter side, for `centre` and `five-crops`. A part that
    is not square is to be letterboxed.
    """
    short_px, long_px = min(width_px, height_px), max(width_px, height_px)
    if cut == "letterbox":
        return [Box(width_px, height_px)]
    if cut == "squares":
        end_px = max(short_px, long_px / 2)
        if width_px >= height_px:
            return [Box(end_px, short_px, across=0), Box(end_px, short_px, across=1)]
        return [Box(short_px, end_px, down=0), Box(short_px, end_px, down=1)]
    side_px = short_px * crop_share
    if cut == "five-crops":
        return [Box(side_px, side_px, across, down) for across, down in _CORNERS_AND_CENTRE]
    return [Box(side_px, side_px)]
