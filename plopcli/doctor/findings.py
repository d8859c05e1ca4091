"""Findings of an examination."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from plopcli.doctor.duration import Duration
from plopcli.errors import PlopError, as_plop_error

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        check: Name of the check.
        level: ok; warning: the run can begin all the same; problem: it would be refused, or would fail.
        message: The finding.
        remedy: What to do about it.
        exit_code: Of a problem.
    """

    check: str
    level: Level
    message: str
    remedy: str | None = None
    exit_code: int = 0


@dataclass
class Examination:
    """All findings, and the expected duration where it could be measured; ``tell`` is called with each finding."""

    tell: Callable[[Finding], None] = lambda finding: None
    findings: list[Finding] = field(default_factory=list)
    duration: Duration | None = None

    @property
    def exit_code(self) -> int:
        """That of the first problem, 0 without one."""
        return next((finding.exit_code for finding in self.findings if finding.level == "problem"), 0)

    def as_dict(self) -> dict[str, Any]:
        """For programs; times in seconds."""
        expected = None
        if self.duration is not None:
            expected = asdict(self.duration) | {"total": self.duration.total}
        return {
            "ready": self.exit_code == 0,
            "findings": [asdict(finding) for finding in self.findings],
            "duration": expected,
        }

    def ok(self, check: str, message: str) -> None:
        """Records that a check passed."""
        self._note(Finding(check, "ok", message))

    def warn(self, check: str, message: str, remedy: str | None = None) -> None:
        """Records a problem that does not stop the run."""
        self._note(Finding(check, "warning", message, remedy))

    def refuse(self, check: str, error: PlopError) -> None:
        """Records a problem that does, unless it is known already."""
        told = {finding.message for finding in self.findings if finding.level == "problem"}
        if error.message not in told:
            self._note(Finding(check, "problem", error.message, error.hint, error.exit_code))

    def _note(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.tell(finding)

    @contextmanager
    def question(self, check: str) -> Iterator[None]:
        """Records errors that occur inside as problems of ``check``."""
        try:
            yield
        except Exception as error:  # a bug is raised again
            if (known := as_plop_error(error)) is None:
                raise
            self.refuse(check, known)
