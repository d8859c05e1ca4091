"""A trained model, from whatever file, and its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from plopcli.data.reading import as_shown, read_image, told
from plopcli.errors import UsageError
from plopcli.evaluation.predict import Forward, class_map, scaled
from plopcli.exporting.facts import Facts
from plopcli.models.classifiers import ClassifierPlan
from plopcli.visualization.overlay import blend

Picture = str | PathLike[str] | Image.Image | npt.NDArray[np.uint8]
"""A file, a Pillow image, or an array (H, W, 3) in RGB or (H, W) in grey, uint8."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Prediction for a picture.

    Attributes:
        labels: The class (H, W) of each pixel, uint8, at the picture's own size; an index into ``classes``.
        image: The picture (H, W, 3), uint8, RGB.
        classes: Names of the model's classes.
        palette: Their colours (C, 3), uint8, RGB.
        background: Whether class 0 is the background.
    """

    labels: npt.NDArray[np.uint8]
    image: npt.NDArray[np.uint8]
    classes: tuple[str, ...]
    palette: npt.NDArray[np.uint8]
    background: bool = True

    @cached_property
    def areas(self) -> Mapping[str, float]:
        """Share of the picture by class, without absent ones, in descending order; they sum to 1."""
        pixels = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        order = np.argsort(-pixels, kind="stable")
        return {self.classes[label]: float(pixels[label] / self.labels.size) for label in order if pixels[label]}

    def mask(self) -> Image.Image:
        """The labels as a picture with a palette: what tools for segmentation call an index PNG."""
        picture = Image.fromarray(self.labels)
        picture.putpalette(self.palette.tobytes())
        return picture

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The picture with its classes laid over it; the background stays as it is.

        ``opacity`` 0 shows the picture and the borders of classes alone, 1 covers the classes.
        """
        return Image.fromarray(blend(self.image, self.labels, self.palette, opacity, background=self.background))


class SegmentationModel:
    """A trained model; `plopcli.load` makes one.

    Args:
        facts: Its classes, and how it is fed.
        forward: The network.
        plan: What its scores mean.
        source: Its file.
        device: Its device.
    """

    def __init__(
        self, facts: Facts, forward: Forward, plan: ClassifierPlan, source: Path, device: torch.device
    ) -> None:
        self._facts = facts
        self._forward = forward
        self._plan = plan
        self.source = source
        self.device = device

    def __repr__(self) -> str:
        facts = self._facts
        learned = f"{facts.dataset} {facts.task} after step {facts.step}, {len(facts.classes)} classes"
        return f"<SegmentationModel {facts.backbone}, {learned}, on {self.device}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return tuple(self._facts.classes)

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """Colours (C, 3) of the classes, RGB."""
        return np.array(self._facts.palette, dtype=np.uint8)

    @property
    def info(self) -> dict[str, object]:
        """Data set, task, step, method, backbone, shorter side of the input."""
        names = ("dataset", "task", "step", "method", "backbone", "shorter_side")
        return {name: getattr(self._facts, name) for name in names}

    def predict(self, picture: Picture) -> Prediction:
        """Segments one picture: a file, a Pillow image, or an array. EXIF orientation is applied.

        Raises:
            DataError: There is no such file, or it is no picture.
            UsageError: The array is no picture.
        """
        (prediction,) = self.predict_many([picture], batch=1)
        return prediction

    def predict_many(self, pictures: Iterable[Picture], batch: int = 4) -> Iterator[Prediction]:
        """Segments pictures in their order, reading each when its turn comes.

        Args:
            pictures: Files, Pillow images or arrays.
            batch: Pictures per pass through the network, where neighbours have the same shape; faster on GPUs.

        Raises:
            DataError: There is no such file, or it is no picture.
            UsageError: An array is no picture.
        """
        if batch < 1:
            raise UsageError(f"A batch of {batch} pictures cannot be.", "Give 1 or more.")
        waiting: list[Image.Image] = []
        pixels: list[npt.NDArray[np.uint8]] = []
        for picture in pictures:
            image = as_image(picture)
            seen = scaled(image, self._facts.shorter_side)
            if waiting and (len(waiting) == batch or seen.shape != pixels[0].shape):
                yield from self._segment(waiting, pixels)
                waiting, pixels = [], []
            waiting.append(image)
            pixels.append(seen)
        if waiting:
            yield from self._segment(waiting, pixels)

    def _segment(self, images: list[Image.Image], pixels: list[npt.NDArray[np.uint8]]) -> Iterator[Prediction]:
        scores = self._forward(torch.from_numpy(np.stack(pixels)))
        for position, image in enumerate(images):
            labels = class_map(scores[position : position + 1], self._plan, image.height, image.width)
            yield Prediction(labels, np.asarray(image), self.classes, self.palette, self._facts.background)


def as_image(picture: Picture) -> Image.Image:
    """A picture as an RGB image, upright.

    Raises:
        DataError: There is no such file, or it is no picture.
        UsageError: The array is no picture.
    """
    if isinstance(picture, Image.Image):
        with told(str(getattr(picture, "filename", None) or picture)):
            return as_shown(picture)
    if isinstance(picture, np.ndarray):
        fits = picture.dtype == np.uint8 and (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3))
        if not fits or not picture.size:
            raise UsageError(
                f"An array of shape {picture.shape} and type {picture.dtype} is no picture.",
                "Give uint8 values of shape (height, width, 3) in RGB; OpenCV's are BGR: image[..., ::-1].",
            )
        return Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    return read_image(Path(picture))
