"""How good a network is that still learns: losses, kilometres, and the likelihood by which the best epoch is kept.

Validation photos share no photographer and no place with those that are trained on (`training.data.split`).

Shapes: N photos of the source, M validation photos, B batch, H levels, K cells of one level, T temperatures tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.geodecoder import GeoDecoderOutput
from model.readout import Reading, ReadOut
from model.world import geodesy
from training.fit.objective import Labels
from training.fit.team import Team
from training.loss import UNKNOWN, masked_cross_entropy
from training.metrics import THRESHOLDS_KM, accuracy

LOG_LIKELIHOOD = "log_likelihood"
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
_LEAST_GAIN = 1e-4
"""In nats: less is rounding, which differs with the number of workers."""


class Validation:
    """What comes of the validation photos, batch by batch, in one of the processes that share them.

    Args:
        rows: every validation photo, of all processes.
    """

    def __init__(self, labels: Labels, rows: NDArray[np.int64], team: Team) -> None:
        self._labels, self._rows, self._team = labels, np.sort(rows), team
        levels = labels.level_NH.shape[1]
        self._sum_P3 = torch.zeros(levels + 1, 3, dtype=torch.float64)
        self._nll_TH = torch.zeros(len(_TEMPERATURES), levels, dtype=torch.float64)
        self._km_seen_M2 = torch.zeros(len(rows), 2, dtype=torch.float64)
        self._read_out: ReadOut | None = None
        if labels.hierarchy is not None:
            self._read_out = ReadOut(labels.hierarchy, Reading.plain(levels)).to(team.device)

    @torch.no_grad()
    def add(self, row_B: NDArray[np.int64], output: GeoDecoderOutput) -> None:
        """Take in what the network says of some photos."""
        self._sum_P3 += summed_losses(self._labels, row_B, output).cpu()
        if self._read_out is not None:
            label_BH = torch.from_numpy(self._labels.level_NH[row_B]).to(output.scene_logits_BS.device)
            self._judge(row_B, tuple(logits_BK.float() for logits_BK in output.logits), label_BH)

    def _judge(self, row_B: NDArray[np.int64], logits: tuple[Tensor, ...], label_BH: Tensor) -> None:
        labels, read_out = self._labels, self._read_out
        assert read_out is not None
        assert labels.hierarchy is not None
        for number, temperature in enumerate(_TEMPERATURES):
            joints = read_out.log_probabilities(tuple(logits_BK / temperature for logits_BK in logits))
            for h, joint_BK in enumerate(joints):
                known_B = label_BH[:, h] != UNKNOWN
                found_B1 = joint_BK[known_B].gather(1, label_BH[known_B, h, None])
                self._nll_TH[number, h] -= found_B1.double().sum().cpu()
            if number == 0:
                top_BT = joints[-1].topk(read_out.top_cells, dim=1).indices
                point_B = read_out.point_index(joints[-1].exp(), top_BT).cpu().numpy()
        finest = labels.hierarchy.levels[-1]
        distance_km_B = geodesy.haversine_km(
            *(finest.lat_deg_K[point_B], finest.lon_deg_K[point_B]),
            *(labels.lat_deg_N[row_B], labels.lon_deg_N[row_B]),
        )
        slot_B = torch.from_numpy(np.searchsorted(self._rows, row_B))
        self._km_seen_M2[slot_B, 0] = torch.from_numpy(np.asarray(distance_km_B, np.float64))
        self._km_seen_M2[slot_B, 1] = 1.0

    def record(self) -> dict[str, float]:
        """Return what came of all processes' photos; each of them has to ask. Empty if no photo could be had.

        Of each level, and of the scenes, loss, accuracy and number of photos that have a label; the share of photos
        within each of the field's distances and the median error, as `jobs.evaluate` has them, of the answers before
        they are calibrated; and `log_likelihood`, in nats a photo: the mean over levels of the served probability's
        logarithm for the cell that a photo lies in, at the best of a few temperatures for all levels, since a model's
        are fitted when training is over.
        """
        parts = [self._sum_P3, self._nll_TH, self._km_seen_M2]
        flat = self._team.sum(torch.cat([part.flatten() for part in parts]).to(self._team.device)).cpu()
        sums, nll, km_seen = torch.split(flat, [part.numel() for part in parts])
        result: dict[str, float] = {}
        known_P = sums.reshape(-1, 3)
        names = [*(f"level_{h}" for h in range(len(known_P) - 1)), "scene"]
        for name, (loss, hits, known) in zip(names, known_P.tolist(), strict=True):
            if known:
                result |= {f"{name}_loss": loss / known, f"{name}_accuracy": hits / known, f"{name}_photos": known}
        km_seen_M2 = km_seen.reshape(-1, 2)
        distance_km_M = km_seen_M2[km_seen_M2[:, 1] > 0, 0].numpy()
        if len(distance_km_M):
            measured = accuracy(distance_km_M)
            result |= {f"within_{THRESHOLDS_KM[name]:g}_km": x for name, x in measured.share_within.items()}
            result |= {"median_km": measured.median_km, "photos": float(measured.photos)}
        count_H = known_P[:-1, 2]
        if self._read_out is not None and float(count_H.sum()):
            mean_TH = nll.reshape(len(_TEMPERATURES), -1)[:, count_H > 0] / count_H[count_H > 0]
            result[LOG_LIKELIHOOD] = -float(mean_TH.mean(dim=1).min())
        return result


def summed_losses(labels: Labels, row_B: NDArray[np.int64], output: GeoDecoderOutput) -> Tensor:
    """Return sums over photos: each level's cross-entropy, hits and labels, then the scenes'; float64, (H + 1, 3)."""
    device = output.scene_logits_BS.device
    label_BH = torch.from_numpy(labels.level_NH[row_B]).to(device)
    scene_B = torch.from_numpy(labels.scene_N[row_B]).to(device)
    sums = []
    for logits_BK, label_B in zip((*output.logits, output.scene_logits_BS), (*label_BH.T, scene_B), strict=True):
        known = (label_B != UNKNOWN).sum()
        loss = masked_cross_entropy(logits_BK.float(), label_B) * known
        sums.append(torch.stack([loss, (logits_BK.argmax(dim=1) == label_B).sum(), known]).double())
    return torch.stack(sums)


@dataclass(frozen=True)
class Best:
    """The epoch whose network made validation photos likeliest, and for how many epochs none has been better."""

    step: int
    epochs: float
    log_likelihood: float
    waited: int = 0

    def is_beaten_by(self, log_likelihood: float) -> bool:
        """Whether another epoch's is more than a rounding better."""
        return log_likelihood > self.log_likelihood + _LEAST_GAIN

    def is_over(self, patience: int) -> bool:
        """Whether training ends, as no epoch has been better for so long; never for a patience of 0."""
        return 0 < patience <= self.waited
