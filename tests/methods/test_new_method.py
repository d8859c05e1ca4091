"""A method added as CONTRIBUTING describes: one file, one line in the registry."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from running import evaluate_path, run_scenario

from plopcli.cli.app import main
from plopcli.methods import METHODS
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import load_checkpoint

Make = Callable[..., Resolved]

FILE = '''
"""Fine-tuning that pulls the logits of old classes towards the old model's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from plopcli.losses.classification import cross_entropy
from plopcli.losses.distillation import feature_distance
from plopcli.data.batches import Batch
from plopcli.methods.base import BEGINNING, Method, Moment
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import MethodSettings, NonNegative


class RubberBandSettings(MethodSettings):
    """How strongly the logits are pulled."""

    name: Literal["rubber-band"] = "rubber-band"
    """Name of the method."""
    pull: NonNegative = 1.0
    """Factor of the squared distance."""


class RubberBand(Method):
    """Cross-entropy, and the squared distance of old classes' logits."""

    Settings = RubberBandSettings
    summary = "pulls the logits of old classes back"
    source = "nobody"

    settings: RubberBandSettings

    @property
    def uses_old_model(self) -> bool:
        """For its logits, from step 1 on."""
        return self.context.step > 0

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """``classification`` and ``pull``."""
        terms = {"classification": cross_entropy(new.logits, batch.labels).mean()}
        if old is not None:
            kept = new.logits[:, : self.context.old]
            terms["pull"] = self.settings.pull * feature_distance(kept, old.logits)
        return terms
'''


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The method above, in a file and in the registry."""
    file = tmp_path / "rubber_band.py"
    file.write_text(FILE)
    spec = importlib.util.spec_from_file_location("plopcli.methods.rubber_band", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "rubber-band", module.RubberBand)
    return


@pytest.mark.usefixtures("registered")
def test_a_file_and_a_line_make_a_method(tiny: Make, tmp_path: Path, quiet: Console, capsys) -> None:
    settings = tiny(method__name="Rubber_Band", method__pull="0.5", output__print_every="1")
    assert settings.settings.method.model_dump() == {"name": "rubber-band", "fusion": "off", "pull": 0.5}
    results = run_scenario(settings, console=quiet)
    assert results.method == "rubber-band"
    assert len(results.steps) == 3
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    terms = {step: {name for row in rows if row["step"] == step for name in row["terms"]} for step in range(3)}
    assert terms == {0: {"classification"}, 1: {"classification", "pull"}, 2: {"classification", "pull"}}
    assert min(row["terms"]["pull"] for row in rows if row["step"] == 2) > 0
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step-2.pt").settings["method"]["pull"] == 0.5
    again = evaluate_path(tmp_path / "run", quiet)
    assert [step.miou for step in again.steps] == [step.miou for step in results.steps]

    assert main(["methods", "rubber-band", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [entry["key"] for entry in shown["settings"]] == ["method.fusion", "method.pull"]
    words = ["--method", "rubber-band", "--set", "method.push=1", "--print-config"]
    assert main(["run-scenario", *words]) == 2
    assert "method.pull" in capsys.readouterr().err
