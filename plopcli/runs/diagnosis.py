"""What was found about the pseudo-labels of a run, as ``diagnosis.json``: made once, read by every report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, computed_field

from plopcli.errors import DamagedFileError
from plopcli.files.atomic import write_atomic
from plopcli.files.plain import FIGURES, parse_json, read_plain
from plopcli.files.strict_json import to_json

_Pixels = Annotated[int, Field(ge=0)]
FORMAT = 1


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class ClassAudit(_Record):
    """Of the pixels that a step's labels call background: those that are truly of one class.

    Attributes:
        pixels: All of them.
        accepted: Those whose pseudo-label is trusted.
        right: Those whose trusted pseudo-label is this class.
        background: Those whose trusted pseudo-label is background.
    """

    pixels: _Pixels
    accepted: _Pixels
    right: _Pixels
    background: _Pixels


class StepAudit(_Record):
    """The pseudo-labels of one step against the hidden truth.

    Attributes:
        step: The step, 1 or later.
        images: Its training images.
        rule: The method's rule; `argmax` where it has none, and every prediction of the old model is counted.
        used: Whether the method trains on these labels.
        base: Classes of step 0, background in them.
        classes: By name, in learned order, the new ones last.
        key: Digests of the two checkpoints and of the data, by which a finding is known to be up to date.
    """

    step: Annotated[int, Field(ge=1)]
    images: _Pixels
    rule: str
    used: bool
    base: _Pixels
    classes: dict[str, ClassAudit]
    key: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def pixels(self) -> int:
        """Pixels labelled background (or an old class) whose truth is known."""
        return sum(each.pixels for each in self.classes.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accepted(self) -> float | None:
        """Share of these that got a pseudo-label."""
        return _share(sum(each.accepted for each in self.classes.values()), self.pixels)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def right(self) -> float | None:
        """Share of the accepted pseudo-labels that are the truth."""
        every = self.classes.values()
        return _share(sum(each.right for each in every), sum(each.accepted for each in every))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def old_recovered(self) -> float | None:
        """Share of the hidden pixels of all old classes, background aside, that got their class back."""
        return _recovered(self._after(1))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def young_recovered(self) -> float | None:
        """The same of classes that were learned after step 0: where classes die; None at step 1."""
        return _recovered(self._after(self.base))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def young_as_background(self) -> float | None:
        """Share of the hidden pixels of these that are taught as background."""
        young = self._after(self.base)
        return _share(sum(each.background for each in young), sum(each.pixels for each in young))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def foreground_right(self) -> float | None:
        """Share of the accepted pseudo-labels of a class, not of background, that are the truth."""
        every = self.classes.values()
        claimed = sum(each.accepted - each.background for each in every)
        return _share(sum(each.right for each in self._after(1)), claimed)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def background_accepted(self) -> float | None:
        """Share of the pixels that are truly background that got a pseudo-label."""
        background = self._after(0)[:1]
        return _share(sum(each.accepted for each in background), sum(each.pixels for each in background))

    def recovered(self, name: str) -> float | None:
        """Share of the hidden pixels of a class that got their class back; None where none is hidden."""
        return _recovered([self.classes[name]] if name in self.classes else [])

    def _after(self, first: int) -> list[ClassAudit]:
        return list(self.classes.values())[first:]


class Diagnosis(_Record):
    """The content of `diagnosis.json`."""

    format: int = FORMAT
    steps: list[StepAudit] = []


def read_diagnosis(path: Path) -> Diagnosis:
    """What was found before; nothing where there is no file.

    Raises:
        DamagedFileError: It is something else.
    """
    try:
        return Diagnosis.model_validate(parse_json(read_plain(path, FIGURES)))
    except FileNotFoundError:
        return Diagnosis()
    except (OSError, ValueError) as error:
        raise DamagedFileError(
            f"{path} cannot be read.", "Remove it; plop report RUN --diagnose makes it anew."
        ) from error


def write_diagnosis(path: Path, diagnosis: Diagnosis) -> None:
    """Writes it, whole or not at all."""
    write_atomic(path, to_json(diagnosis.model_dump(mode="json"), indent=2) + "\n")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _recovered(classes: list[ClassAudit]) -> float | None:
    return _share(sum(each.right for each in classes), sum(each.pixels for each in classes))
