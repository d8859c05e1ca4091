"""Whether an exported file computes what the model computes, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plopcli.data.transforms import normalise
from plopcli.errors import PlopError
from plopcli.evaluation.predict import Forward
from plopcli.models.segmenter import Segmenter

Pixels = npt.NDArray[np.uint8]

#: Largest difference of two logits, as a share of the largest logit, and the share of pixels whose arg-max is equal.
MOST_DIFFERENCE, LEAST_AGREEMENT = 1e-4, 0.9999


@dataclass(frozen=True)
class ExportCheck:
    """The result of a check.

    Args:
        pictures: Number of pictures compared.
        smallest: Height and width of the smallest of them, scaled for the network.
        largest: The same of the largest.
        difference: Largest difference of two logits, as a share of the largest logit of that picture.
        agreement: Share of all pixels with the same most likely class.
        model_ms: Median time of the model in torch, ms per picture.
        file_ms: Median time of the file.
        threads: Threads of each of them.
        own_pooling: Share of pixels that agree with the model as it was trained, where the pooling differs.
    """

    pictures: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    difference: float
    agreement: float
    model_ms: float
    file_ms: float
    threads: int
    own_pooling: float | None = None

    def verify(self) -> None:
        """Refuses a file whose outputs differ.

        Raises:
            PlopError: A limit is exceeded.
        """
        # Not the other way round: nan is no agreement.
        if self.difference <= MOST_DIFFERENCE and self.agreement >= LEAST_AGREEMENT:
            return
        raise PlopError(
            f"The file does not compute what the model computes: logits differ by {self.difference:.1e} of the largest "
            f"(limit {MOST_DIFFERENCE:g}), {100 * self.agreement:.3f} % of the pixels agree.",
            "It was not kept. Please report this with the output of `plop env`; another --format may do.",
        )


def logits_of(model: Segmenter) -> Forward:
    """Class scores of a model in eval mode at the size of its input, in float32 on its device."""

    def forward(pixels: Tensor) -> Tensor:
        device = model.classifiers[0].weight.device
        with torch.inference_mode():
            scores: Tensor = model(normalise(pixels.to(device), channels_last=False)).scores
            return model.plan.class_scores(scores)

    return forward


def compare(model: Forward, file: Forward, pictures: Sequence[Pixels], trained: Forward | None = None) -> ExportCheck:
    """Runs both on pictures (h, w, 3) scaled for the network, one by one, and on a batch of two; times them in turn.

    Args:
        model: The model in torch; logits at the size of the input.
        file: The exported file.
        pictures: The pictures.
        trained: The model with the pooling it was trained with, where that of ``model`` differs.
    """
    batch = torch.from_numpy(np.stack([pictures[0], pictures[0][:, ::-1]]))
    worst, equal, as_trained, total = _difference(model(batch), file(batch)), 0, 0, 0
    times: tuple[list[float], list[float]] = ([], [])
    for picture in pictures:
        pixels = torch.from_numpy(picture.copy()).unsqueeze(0)
        logits = [_timed(forward, pixels, spent) for forward, spent in zip((model, file), times, strict=True)]
        worst = max(worst, _difference(*logits))
        ours, theirs = (scores.argmax(dim=1).cpu() for scores in logits)
        equal += int((ours == theirs).sum())
        as_trained += 0 if trained is None else int((trained(pixels).argmax(dim=1).cpu() == theirs).sum())
        total += ours.numel()
    sizes = sorted((picture.shape[:2] for picture in pictures), key=lambda size: size[0] * size[1])
    return ExportCheck(
        len(pictures),
        sizes[0],
        sizes[-1],
        worst,
        equal / total,
        statistics.median(times[0]),
        statistics.median(times[1]),
        torch.get_num_threads(),
        None if trained is None else as_trained / total,
    )


def noise(shorter: int) -> list[Pixels]:
    """Generated pictures: coarse noise in a square, a landscape and a portrait of the given shorter side."""
    rng = np.random.default_rng(0)
    sizes = ((shorter, shorter), (shorter, shorter * 4 // 3), (shorter * 3 // 2, shorter))
    return [
        rng.integers(0, 256, (-(-h // 8), -(-w // 8), 3), np.uint8).repeat(8, 0).repeat(8, 1)[:h, :w] for h, w in sizes
    ]


def _timed(forward: Forward, pixels: Tensor, spent: list[float]) -> Tensor:
    """The logits; appends their milliseconds to ``spent``."""
    start = time.perf_counter()
    logits = forward(pixels)
    if logits.is_cuda:
        torch.cuda.synchronize()
    spent.append(1000 * (time.perf_counter() - start))
    return logits


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the largest logit; nan where one of them is not finite."""
    ours, theirs = ours.cpu(), theirs.cpu()
    assert ours.shape == theirs.shape, f"{ours.shape} and {theirs.shape}"
    return float((ours - theirs).abs().max() / ours.abs().max())
