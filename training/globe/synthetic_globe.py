"""A synthetic globe: a world whose photographs hold known cues, so that the best possible accuracy can be computed.

Towns lie in countries, countries in climates. A photograph shows three cues: its climate as a colour, its country as a
shape on a sign, its town as a texture of glyphs. None is enough: countries of different climates share signs, towns of
different countries share glyphs. Every scene shows the cues in its own way: in other places of the picture, in another
style, and through its own code book, so that the same colour means one climate indoors and another one in a city.

The noise is a discrete channel: each cue, and the scene that the picture looks like, is with a known probability
replaced by another one, all others alike. Only then is it painted, with pixel noise too weak to confuse two symbols.
So the photograph is worth as much as four symbols, whose joint probabilities with the towns are a small table.

Shapes: N photos; T towns; S scenes; A symbols of one cue; O = S · A · A · A all that a photo can show; Y, X rows and
columns of pixels, C 3 colours.
"""

from __future__ import annotations

import colorsys
import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from model.geodecoder import SCENES_3
from model.world import geodesy
from pipeline import storage

SIZE_PX = 32
MANIFEST = "photos.csv"

_BLOCK_PX = 8
_BLOCKS = SIZE_PX // _BLOCK_PX
_CLIMATE_RADIUS_KM, _COUNTRY_RADIUS_KM = 900.0, 120.0
_MOST = {"climates": 12, "signs": 8, "glyphs": 15, "scenes": 16}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class GlobeConfig:
    """A world: `countries` of each climate, `towns` of each country; `wrong_…` the probability that a photo shows
    another scene's look, colour, sign or glyph than its own; `jitter_km` how far from the town's middle photos are
    taken. Of the towns in a random order, number r has a share of all photos that falls as r^-`tail` (Zipf's law): 0
    for towns that are all photographed alike.

    Raises ValueError for a world that can't be painted or in which a cue says nothing.
    """

    seed: int = 0
    climates: int = 4
    countries: int = 3
    towns: int = 4
    signs: int = 6
    glyphs: int = 6
    scenes: tuple[str, ...] = SCENES_3
    wrong_scene: float = 0.05
    wrong_colour: float = 0.1
    wrong_sign: float = 0.1
    wrong_glyph: float = 0.1
    jitter_km: float = 0.3
    pixel_noise: int = 12
    tail: float = 0.0

    def __post_init__(self) -> None:
        counts = {"climates": self.climates, "signs": self.signs, "glyphs": self.glyphs, "scenes": len(self.scenes)}
        for name, count in counts.items():
            if not (1 if name == "scenes" else 2) <= count <= _MOST[name]:
                raise ValueError(f"a globe has from 2 to {_MOST[name]} {name}, not {count}")
        if not 1 <= self.countries <= self.signs or not 1 <= self.towns <= self.glyphs:
            raise ValueError("a climate's countries need a sign each, a country's towns a glyph each: give more")
        wrong = (self.wrong_scene, self.wrong_colour, self.wrong_sign, self.wrong_glyph)
        if not all(0 <= probability < 0.5 for probability in wrong):
            raise ValueError(f"the probabilities of wrong symbols must be at least 0 and below one half, not {wrong}")
        if not 0 <= self.pixel_noise <= 40:
            raise ValueError(f"pixel_noise must lie between 0 and 40 of 255, not {self.pixel_noise}")
        if not 0 <= self.tail <= 3:
            raise ValueError(f"tail must lie between 0 (all towns alike) and 3, not {self.tail}")


@dataclass(frozen=True, eq=False)
class GlobePhotos:
    """Photographs with all that is true of them. `symbol_N4` is what they show: the scene's look, colour, sign, glyph,
    as the code book says them, noise included."""

    town_N: NDArray[np.int64]
    scene_N: NDArray[np.int64]
    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]
    symbol_N4: NDArray[np.int64]
    pixels_NYXC: Pixels

    def __len__(self) -> int:
        return len(self.town_N)


class Globe:
    """The world of a configuration; the same seed, the same world.

    `lat_deg_T`, `lon_deg_T`, `climate_T`, `country_T`, `symbol_T3` (colour, sign, glyph) and `share_T` (of all photos)
    describe its towns;
    `code_books` has, for each of the three cues, the symbol that a scene shows for a meaning, SA; `likelihood_TO` is
    the probability of all that photos can show, given the town, and `shape_O` unfolds O: look, colour, sign, glyph.
    """

    def __init__(self, config: GlobeConfig) -> None:
        self.config = config
        random = np.random.default_rng([config.seed, 0])
        countries = config.climates * config.countries
        self.country_T = np.repeat(np.arange(countries), config.towns)
        self.climate_T = self.country_T // config.countries
        self.lat_deg_T, self.lon_deg_T = _places(random, config)
        sign_of_country = _different_within(random, config.climates, config.countries, config.signs)
        glyph_T = _different_within(random, countries, config.towns, config.glyphs)
        self.symbol_T3 = np.stack([self.climate_T, sign_of_country[self.country_T], glyph_T], axis=1)
        self.shape_O = (len(config.scenes), config.climates, config.signs, config.glyphs)
        self.code_books = [np.stack([random.permutation(count) for _ in config.scenes]) for count in self.shape_O[1:]]
        wrong = (config.wrong_scene, config.wrong_colour, config.wrong_sign, config.wrong_glyph)
        self._channels = [_channel(count, probability) for count, probability in zip(self.shape_O, wrong, strict=True)]
        shown = [
            channel[book[:, meaning_T]]  # S T A
            for channel, book, meaning_T in zip(self._channels[1:], self.code_books, self.symbol_T3.T, strict=True)
        ]
        likelihood = np.einsum("sl,sta,stb,stc->tlabc", self._channels[0], *shown) / len(config.scenes)
        self.likelihood_TO: NDArray[np.float64] = likelihood.reshape(len(self.country_T), -1)
        self._paint = _Paint(random, self.shape_O)
        weight_T = np.arange(1, self.towns + 1) ** -config.tail
        order_T = np.random.default_rng([config.seed, 2]).permutation(self.towns)
        self.share_T: NDArray[np.float64] = weight_T[order_T] / weight_T.sum()

    @property
    def towns(self) -> int:
        """The number of towns."""
        return len(self.country_T)

    def photos(self, photos_per_town: int, draw: int) -> GlobePhotos:
        """Take as many photographs in every town; every number `draw` gives another, repeatable set of them."""
        return self.photos_of(np.repeat(np.arange(self.towns), photos_per_town), draw)

    def photos_by_share(self, photos: int, draw: int) -> GlobePhotos:
        """Take so many photographs, each in a town drawn by the towns' shares; every `draw` gives other ones."""
        random = np.random.default_rng([self.config.seed, 3, draw])
        return self.photos_of(random.choice(self.towns, photos, p=self.share_T), draw)

    def photos_of(self, town_N: NDArray[np.int64], draw: int) -> GlobePhotos:
        """Take a photograph in each of these towns; every number `draw` gives other ones."""
        random = np.random.default_rng([self.config.seed, 1, draw])
        scene_N = random.integers(len(self.config.scenes), size=len(town_N))
        meant = [scene_N, *(book[scene_N, self.symbol_T3[town_N, cue]] for cue, book in enumerate(self.code_books))]
        symbol_N4 = np.stack(
            [_through(random, channel, symbol_N) for channel, symbol_N in zip(self._channels, meant, strict=True)],
            axis=1,
        )
        lat_deg_N, lon_deg_N = geodesy.destination_point(
            self.lat_deg_T[town_N],
            self.lon_deg_T[town_N],
            random.uniform(0, 360, len(town_N)),
            self.config.jitter_km * np.sqrt(random.uniform(0, 1, len(town_N))),
        )
        pixels_NYXC = self._paint.paint(random, symbol_N4, self.config.pixel_noise)
        return GlobePhotos(town_N, scene_N, lat_deg_N, lon_deg_N, symbol_N4, pixels_NYXC)

    def read_symbols(self, pixels_NYXC: Pixels) -> NDArray[np.int64]:
        """Return symbol_N4 as they are seen in pictures, by the nearest of all pictures without pixel noise."""
        parts = np.array_split(pixels_NYXC, max(1, len(pixels_NYXC) // 256))
        return np.concatenate([self._paint.read(pixels) for pixels in parts])

    def posterior_NT(self, symbol_N4: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the probability of every town, given what photos show: Bayes' rule, the shares being the prior."""
        seen_NT = self.likelihood_TO[:, np.ravel_multi_index(tuple(symbol_N4.T), self.shape_O)].T * self.share_T
        return np.asarray(seen_NT / seen_NT.sum(axis=1, keepdims=True))

    def optimum(self, cell_T: NDArray[np.int64]) -> float:
        """Return the highest expected accuracy in telling which of the cells a photo is from; `cell_T`: the town's."""
        return float(_by_cell(self._joint_TO, cell_T).max(axis=0).sum())

    def optimum_by_town(self, cell_T: NDArray[np.int64]) -> float:
        """Return the expected accuracy of the cell in which the most probable town lies: at most the `optimum`."""
        best_O = self._joint_TO.argmax(axis=0)
        mass_KO = _by_cell(self._joint_TO, cell_T)
        return float(mass_KO[cell_T[best_O], np.arange(len(best_O))].sum())

    def optimum_scene(self) -> float:
        """Return the highest expected accuracy in telling a photo's scene."""
        shown = [
            channel[book[:, meaning_T]]
            for channel, book, meaning_T in zip(self._channels[1:], self.code_books, self.symbol_T3.T, strict=True)
        ]
        joint_SO = np.einsum("t,sl,sta,stb,stc->slabc", self.share_T, self._channels[0], *shown)
        return float(joint_SO.max(axis=0).sum() / len(self.config.scenes))

    @property
    def _joint_TO(self) -> NDArray[np.float64]:
        return np.asarray(self.likelihood_TO * self.share_T[:, None])

    def nearest_town_N(self, lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> NDArray[np.int64]:
        """Return the town nearest to each point."""
        point_N3 = geodesy.unit_vectors_N3(lat_deg_N, lon_deg_N)
        return np.asarray((point_N3 @ geodesy.unit_vectors_N3(self.lat_deg_T, self.lon_deg_T).T).argmax(axis=1))


def write_archive(globe: Globe, folder_uri: str, photos_per_town: Mapping[str, int]) -> str:
    """Write photographs as PNG files and `photos.csv` (path, lat, lon, scene, part), and return the table's URI.

    `photos_per_town`: how many of each part (train, validation, test): all parts show the same towns, which is what
    the optimum is about, so the column `part` says which is which.
    """
    rows: dict[str, list[object]] = {name: [] for name in ("path", "lat", "lon", "scene", "part")}
    for draw, (part, count) in enumerate(photos_per_town.items()):
        photos = globe.photos(count, draw)
        for row in range(len(photos)):
            path = f"{part}/{row:06d}.png"
            buffer = io.BytesIO()
            Image.fromarray(photos.pixels_NYXC[row]).save(buffer, "png")
            storage.write_bytes(storage.join(folder_uri, path), buffer.getvalue())
            scene = globe.config.scenes[photos.scene_N[row]]
            values = (path, float(photos.lat_deg_N[row]), float(photos.lon_deg_N[row]), scene, part)
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
    table = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(rows), table)
    storage.write_bytes(storage.join(folder_uri, MANIFEST), table.getvalue())
    return storage.join(folder_uri, MANIFEST)


class _Paint:
    """What symbols look like. A picture is four strips of four blocks: the scene's mark, a band of colour, a sign in
    one of its strip's blocks, glyphs in one of theirs; each look has its own order of strips, and its own tones."""

    def __init__(self, random: np.random.Generator, shape_O: tuple[int, ...]) -> None:
        looks, colours, signs, glyphs = shape_O
        orders = list(itertools.permutations(range(_BLOCKS)))
        self._strip_of_S4 = np.array([orders[i] for i in random.permutation(len(orders))[:looks]])
        paper_S3 = 75.0 + random.uniform(-25, 25, (looks, 3))
        ink_S3 = 190.0 + random.uniform(-25, 25, (looks, 3))
        swapped_S = (np.arange(looks) % 2 == 1)[:, None]
        paper_S3, ink_S3 = np.where(swapped_S, ink_S3, paper_S3), np.where(swapped_S, paper_S3, ink_S3)
        tones = (paper_S3, ink_S3)
        rgb_AC = np.array([colorsys.hsv_to_rgb(i / colours, 0.8, 0.85) for i in range(colours)]) * 255
        band = np.broadcast_to(rgb_AC[None, :, None, None, None], (looks, colours, 1, _BLOCK_PX, SIZE_PX, 3))
        mark_S = (np.arange(looks)[:, None] >> np.arange(_BLOCKS)) & 1
        mark = np.kron(mark_S[:, None], np.ones((1, _BLOCK_PX, _BLOCK_PX)))[:, None, None, ..., None] * 120.0 + 60
        mark = np.broadcast_to(mark, (looks, 1, 1, _BLOCK_PX, SIZE_PX, 3))
        self._strips = [mark, band, _in_any_block(_signs()[:signs], *tones), _in_any_block(_glyphs()[:glyphs], *tones)]
        """For each kind of strip what it can look like: look, symbol, block, Y, X, C."""

    def paint(self, random: np.random.Generator, symbol_N4: NDArray[np.int64], noise: int) -> Pixels:
        look_N = symbol_N4[:, 0]
        picture = np.empty((len(look_N), _BLOCKS, _BLOCK_PX, SIZE_PX, 3))
        for kind, strip in enumerate(self._strips):
            symbol_N = symbol_N4[:, kind] if kind else np.zeros_like(look_N)
            block_N = random.integers(strip.shape[2], size=len(look_N))
            picture[np.arange(len(look_N)), self._strip_of_S4[look_N, kind]] = strip[look_N, symbol_N, block_N]
        picture += random.integers(-noise, noise + 1, picture.shape)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8).reshape(-1, SIZE_PX, SIZE_PX, 3)

    def read(self, pixels_NYXC: Pixels) -> NDArray[np.int64]:
        picture = pixels_NYXC.reshape(len(pixels_NYXC), _BLOCKS, -1).astype(np.float64)
        misfit_NS = np.zeros((len(picture), len(self._strip_of_S4)))
        best_NS4 = np.zeros((*misfit_NS.shape, len(self._strips)), np.int64)
        for look in range(misfit_NS.shape[1]):
            best_NS4[:, look, 0] = look
            for kind, strip in enumerate(self._strips):
                _, symbols, blocks = strip.shape[:3]
                seen_ND, known_MD = picture[:, self._strip_of_S4[look, kind]], strip[look].reshape(symbols * blocks, -1)
                misfit_NM = (known_MD**2).sum(axis=1) - 2 * seen_ND @ known_MD.T + (seen_ND**2).sum(axis=1)[:, None]
                misfit_NS[:, look] += misfit_NM.min(axis=1)
                if kind:
                    best_NS4[:, look, kind] = misfit_NM.argmin(axis=1) // blocks
        return np.asarray(best_NS4[np.arange(len(picture)), misfit_NS.argmin(axis=1)])


def _in_any_block(
    mask_AYX: NDArray[np.float64], paper_S3: NDArray[np.float64], ink_S3: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return strips of paper with the mask in ink in one of their blocks: look, symbol, block, Y, X, C."""
    strip_ABYX = np.zeros((len(mask_AYX), _BLOCKS, _BLOCK_PX, SIZE_PX))
    for block in range(_BLOCKS):
        strip_ABYX[:, block, :, block * _BLOCK_PX : (block + 1) * _BLOCK_PX] = mask_AYX
    paper, ink = (tone[:, None, None, None, None, :] for tone in (paper_S3, ink_S3))
    return np.asarray(paper + (ink - paper) * strip_ABYX[None, ..., None])


def _signs() -> NDArray[np.float64]:
    """Return eight shapes, AYX: disc, square, triangle, its reverse, cross, saltire, ring, bar."""
    y, x = np.mgrid[:_BLOCK_PX, :_BLOCK_PX] - (_BLOCK_PX - 1) / 2
    radius, widest = np.hypot(x, y), np.maximum(abs(x), abs(y))
    shapes = [
        radius < 3.0,
        (widest < 4) & (widest > 2),
        abs(x) < (y + 4) / 2,
        abs(x) < (4 - y) / 2,
        (np.minimum(abs(x), abs(y)) < 1),
        (abs(abs(x) - abs(y)) < 1),
        (radius < 4.2) & (radius > 2.2) & (y < 0),
        abs(y) < 2,
    ]
    return np.stack(shapes).astype(np.float64)


def _glyphs() -> NDArray[np.float64]:
    """Return fifteen textures, AYX: the Walsh patterns of 4 x 4 pixels, which differ in half of them, repeated."""
    bits = np.arange(16)
    parity = np.array([[bin(a & b).count("1") % 2 for b in bits] for a in bits[1:]])
    return np.tile(parity.reshape(-1, 4, 4), (1, 2, 2)).astype(np.float64)


def _places(random: np.random.Generator, config: GlobeConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (lat_deg_T, lon_deg_T): climates all over the sphere, countries within them, towns within these."""
    points = _spread(random, config.climates, (0.0, 0.0), np.pi * geodesy.EARTH_RADIUS_KM)
    for count, radius_km in ((config.countries, _CLIMATE_RADIUS_KM), (config.towns, _COUNTRY_RADIUS_KM)):
        points = [place for point in points for place in _spread(random, count, point, radius_km)]
    lat_deg_T, lon_deg_T = np.array(points).T
    return lat_deg_T, lon_deg_T


def _spread(
    random: np.random.Generator, count: int, middle_deg: tuple[float, float], radius_km: float
) -> list[tuple[float, float]]:
    """Return points of a disc on the sphere that keep away from each other: each the farthest of many random ones."""
    tries = 20 * count
    height = random.uniform(np.cos(radius_km / geodesy.EARTH_RADIUS_KM), 1, tries)
    distance_km = geodesy.EARTH_RADIUS_KM * np.arccos(height)
    lat_deg, lon_deg = geodesy.destination_point(*middle_deg, random.uniform(0, 360, tries), distance_km)
    vector = geodesy.unit_vectors_N3(lat_deg, lon_deg)
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int((vector @ vector[chosen].T).max(axis=1).argmin()))
    return [(float(lat_deg[i]), float(lon_deg[i])) for i in chosen]


def _different_within(random: np.random.Generator, groups: int, members: int, symbols: int) -> NDArray[np.int64]:
    """Return a symbol for each member of each group, different within a group."""
    return np.concatenate([random.permutation(symbols)[:members] for _ in range(groups)])


def _channel(symbols: int, wrong: float) -> NDArray[np.float64]:
    """Return the probability of what is shown (columns) for what is meant (rows)."""
    if symbols == 1:
        return np.ones((1, 1))
    return np.where(np.eye(symbols, dtype=bool), 1 - wrong, wrong / (symbols - 1))


def _through(
    random: np.random.Generator, channel: NDArray[np.float64], symbol_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    reached_NA = channel.cumsum(axis=1)[symbol_N]
    shown_N = (random.uniform(0, 1, len(symbol_N))[:, None] > reached_NA).sum(axis=1)
    return np.asarray(np.minimum(shown_N, len(channel) - 1))  # the last sum is 1 but for rounding


def _by_cell(mass_TO: NDArray[np.float64], cell_T: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the masses KO of cells."""
    mass_KO = np.zeros((int(cell_T.max()) + 1, mass_TO.shape[1]))
    np.add.at(mass_KO, cell_T, mass_TO)
    return mass_KO
