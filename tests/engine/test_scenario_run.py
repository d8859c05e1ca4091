"""Whole runs on a tiny network: equal by any way of starting them, refused where they would do harm."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from running import evaluate_path, run_scenario, run_single_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensors import assert_same_tensors

from plopcli.doctor.examine import examine
from plopcli.engine import checks
from plopcli.engine.scenario_run import ScenarioChoices, plan_scenario
from plopcli.errors import DataError, MachineError, PlopError, UsageError
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import load_checkpoint, save_checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.runs.results import Results

Make = Callable[..., Resolved]


def _weights(run: Path) -> list[dict[str, torch.Tensor]]:
    return [dict(load_checkpoint(path).model) for path in sorted(run.glob("checkpoints/*.pt"))]


def _same(left: Path, right: Path) -> bool:
    pairs = list(zip(_weights(left), _weights(right), strict=True))
    assert pairs, "nothing to compare"
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def _figures(results: Results) -> list[tuple[Any, ...]]:
    return [(step.step, step.iou, step.miou, step.accuracy) for step in results.steps]


def _stored(run: Path) -> Results:
    results = RunFolder(run).read_results()
    assert results is not None
    return results


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_the_run_folder_explains_itself(plop_run: Path) -> None:
    for name in (
        "settings.toml",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "results.json",
        "results.csv",
        "checkpoints/step-2.pt",
        "curves/training.png",
        "curves/miou.png",
    ):
        assert (plop_run / name).stat().st_size > 0, name
    assert len(list((plop_run / "overlays").glob("*.png"))) == 2
    assert list((plop_run / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (plop_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["step"] == 0] == list(range(6))
    assert {"classification", "pod"} == set(rows[-1]["terms"])
    results = json.loads((plop_run / "results.json").read_text())
    assert results["classes"][0] == "background"
    assert [step["step"] for step in results["steps"]] == [0, 1, 2]
    assert len(results["steps"][1]["iou"]) == 20
    assert results["avg"] == pytest.approx(sum(step["miou"]["all"] for step in results["steps"]) / 3)
    stamp = json.loads((plop_run / "environment.json").read_text())
    assert torch.__version__.startswith(stamp["versions"]["torch"])
    assert stamp["data_fingerprint"]


def test_a_run_tells_its_pace_and_shows_its_predictions(plop_run: Path) -> None:
    events = EventAccumulator(str(plop_run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    pictures = events.Tags()["images"]
    rates = {part: {event.step: event.value for event in events.Scalars(f"lr/{part}")} for part in ("body", "old")}
    assert rates["body"] == {event.step: event.value for event in events.Scalars("lr")}
    assert min(rates["old"]) == 7, "step 0 has no classifiers of earlier steps"
    # Iterations come in pairs here (output.print_every), but for those that end an epoch.
    assert [event.step for event in events.Scalars("time/iteration (s)")][:3] == [1, 3, 5]
    for name in ("time/iteration (s)", "time/images per second", "memory/peak (GiB)"):
        assert min(event.value for event in events.Scalars(name)) > 0
    waited, taken = (events.Scalars(f"time/{name} (s)") for name in ("waiting for images", "iteration"))
    assert all(0 <= w.value <= t.value for w, t in zip(waited, taken, strict=True))
    shown = [tag for tag in pictures if tag.startswith("predictions/")]
    assert len(shown) == 2  # output.overlays
    for tag in ("confusion", *shown):
        assert [picture.step for picture in events.Images(tag)] == [6, 8, 10], "after 6, 1 and 1 iterations"
    stored = json.loads((plop_run / "results.json").read_text())
    assert events.Scalars("over steps/forgetting")[-1].value == pytest.approx(stored["forgetting"]["mean"], rel=1e-5)
    assert SESSION_START_INFO_TAG in events.summary_metadata
    lines = (plop_run / "log.txt").read_text()
    assert re.search(r"step 0 epoch 1/1: .*images/s, .* left in the run\n", lines)
    assert "\x1b" not in lines


def test_single_steps_equal_the_whole_scenario_bitwise(
    plop_run: Path, tiny: Make, folders: Path, quiet: Console
) -> None:
    run = folders / "steps"
    settings = tiny(run=run, method__name="plop")
    for step in range(3):
        results = run_single_step(settings, step=step, console=quiet)
    assert _same(plop_run, run)
    assert _figures(results) == _figures(_stored(plop_run))


def test_evaluate_gives_the_figures_of_training(plop_run: Path, quiet: Console) -> None:
    assert _figures(evaluate_path(plop_run, quiet)) == _figures(_stored(plop_run))
    single = evaluate_path(plop_run / "checkpoints" / "step-1.pt", quiet)
    assert _figures(single) == _figures(_stored(plop_run))[1:2]


def test_another_method_shares_step_0(plop_run: Path, tiny: Make, folders: Path, quiet: Console) -> None:
    shared, alone = folders / "ft-shared", folders / "ft-alone"
    run_scenario(tiny(run=shared, method__name="ft"), init_from=plop_run, console=quiet)
    run_scenario(tiny(run=alone, method__name="ft"), console=quiet)
    assert _same(shared, alone)
    assert load_checkpoint(shared / "checkpoints" / "step-0.pt").settings["method"]["name"] == "ft"


def test_a_regulariser_shares_step_0_with_what_it_gathered(tiny: Make, folders: Path, quiet: Console) -> None:
    donor, shared, alone = folders / "ewc", folders / "ewc-shared", folders / "ewc-alone"
    ewc = {"method__name": "ewc", "train__later__epochs": 3}  # the penalty moves nothing in a step's first iteration
    run_scenario(tiny(run=donor, **ewc), console=quiet)
    run_scenario(tiny(run=shared, **ewc, method__importance=9.0), init_from=donor, console=quiet)
    run_scenario(tiny(run=alone, **ewc, method__importance=9.0), console=quiet)
    assert _same(shared, alone)
    assert not _same(shared, donor)
    for changed in ({"method__name": "ft"}, {"method__alpha": 0.5}):
        with pytest.raises(UsageError, match="first step"):
            run_scenario(tiny(run=folders / "refused", **{**ewc, **changed}), init_from=donor, console=quiet)


def test_a_different_first_step_is_not_taken_over(plop_run: Path, tiny: Make, tmp_path: Path, quiet: Console) -> None:
    with pytest.raises(UsageError, match=r"train.first|first"):
        run_scenario(tiny(method__name="ft", train__first__lr=0.02), init_from=plop_run, console=quiet)
    with pytest.raises(UsageError, match="seed"):
        run_scenario(tiny(method__name="ft", seed=7, run=tmp_path / "b"), init_from=plop_run, console=quiet)


def test_resume_goes_on_after_the_last_finished_step(plop_run: Path, tiny: Make, folders: Path, quiet: Console) -> None:
    run = folders / "resumed"
    settings = tiny(run=run, method__name="plop")
    run_single_step(settings, step=0, console=quiet)
    with pytest.raises(UsageError, match="--resume"):
        run_scenario(settings, console=quiet)
    run_scenario(settings, resume=True, console=quiet)
    assert _same(plop_run, run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["step"] == 0] == list(range(6))


def test_resume_with_other_settings_names_the_difference(plop_run: Path, tiny: Make, quiet: Console) -> None:
    with pytest.raises(UsageError, match=r"train.later.*0.5"):
        run_scenario(tiny(run=plop_run, method__name="plop", train__later__lr=0.5), resume=True, console=quiet)


def test_joint_learns_all_at_once_and_reports_the_same_groups(tiny: Make, quiet: Console) -> None:
    results = run_scenario(tiny(method__name="joint"), console=quiet)
    assert len(results.steps) == 1
    assert len(results.steps[0].iou) == 21
    assert results.base_classes == 19
    assert results.steps[0].miou.new is not None


def test_wrong_starts_are_refused(plop_run: Path, tiny: Make, tmp_path: Path, quiet: Console) -> None:
    settings = tiny(run=tmp_path / "new", method__name="plop")
    with pytest.raises(DataError, match="--step 1"):
        run_single_step(settings, step=2, console=quiet)
    with pytest.raises(UsageError, match="steps 0 to 2"):
        run_single_step(settings, step=3, console=quiet)
    with pytest.raises(DataError, match="of step 0; this one is of step 1"):
        run_single_step(settings, step=1, previous=plop_run / "checkpoints" / "step-1.pt", console=quiet)
    other = tiny(run=tmp_path / "other", method__name="plop", scenario__task="10-5")
    with pytest.raises(DataError, match="another task"):
        run_single_step(other, step=1, previous=plop_run / "checkpoints" / "step-0.pt", console=quiet)
    with pytest.raises(UsageError, match="already holds step 1"):
        run_single_step(tiny(run=plop_run, method__name="plop"), step=1, console=quiet)


def test_a_refused_start_leaves_the_old_run_alone(tiny: Make, tmp_path: Path, quiet: Console) -> None:
    run = tmp_path / "kept"
    settings = tiny(run=run, method__name="plop")
    for step in range(2):
        run_single_step(settings, step=step, console=quiet)
    before = _weights(run)
    with pytest.raises(DataError, match="no checkpoint"):
        run_scenario(settings, overwrite=True, init_from=tmp_path / "nowhere.pt", console=quiet)
    with pytest.raises(DataError, match="of step 0; this one is of step 1"):
        run_single_step(settings, step=1, previous=run / "checkpoints" / "step-1.pt", overwrite=True, console=quiet)
    with pytest.raises(DataError, match="--no-pretrained"):
        run_scenario(tiny(run=run, model__pretrained="true"), overwrite=True, console=quiet)
    with pytest.raises(DataError, match="another network"):
        run_single_step(
            tiny(run=tmp_path / "other", method__name="plop", model__activation="relu"),
            step=1,
            previous=run / "checkpoints" / "step-0.pt",
            console=quiet,
        )
    with pytest.raises(UsageError, match="it is of step 1"):
        run_scenario(
            tiny(run=tmp_path / "b", method__name="ft"), init_from=run / "checkpoints" / "step-1.pt", console=quiet
        )
    after = _weights(run)
    assert len(after) == 2
    for then, now in zip(before, after, strict=True):
        assert_same_tensors(now, then)


def test_overwrite_spares_what_is_not_ours(tiny: Make, tmp_path: Path, quiet: Console) -> None:
    run = tmp_path / "mixed"
    run_scenario(tiny(run=run, method__name="joint"), console=quiet)
    (run / "checkpoints" / "mine.pth").write_text("precious")
    run_scenario(tiny(run=run, method__name="joint", seed=5), overwrite=True, console=quiet)
    assert (run / "checkpoints" / "mine.pth").read_text() == "precious"
    assert json.loads((run / "results.json").read_text())["seed"] == 5
    foreign = tmp_path / "foreign"
    (foreign / "checkpoints").mkdir(parents=True)
    (foreign / "checkpoints" / "step-0.pt").write_text("precious")
    with pytest.raises(UsageError, match="not the folder of a run"):
        run_scenario(tiny(run=foreign, method__name="joint"), overwrite=True, console=quiet)


def test_a_cut_off_metrics_line_and_stale_results_do_not_stop_a_resume(
    plop_run: Path, tiny: Make, folders: Path, quiet: Console
) -> None:
    run = folders / "cut"
    settings = tiny(run=run, method__name="plop")
    for step in range(2):
        run_single_step(settings, step=step, console=quiet)
    (run / "checkpoints" / "step-1.pt").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "itera')
    results = run_scenario(settings, resume=True, console=quiet)
    assert _figures(results) == _figures(_stored(plop_run))
    assert _same(plop_run, run)


def test_steps_that_would_fail_later_are_refused_at_once(tiny: Make, tmp_path: Path, quiet: Console) -> None:
    run = tmp_path / "late"
    with pytest.raises(UsageError, match="fewer than one batch"):
        run_scenario(tiny(run=run, train__batch=40), console=quiet)
    with pytest.raises(UsageError, match="fewer than one batch"):
        plan_scenario(tiny(run=run, train__batch=40))
    assert not run.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__output_stride": 16}, "A feature map of 3 x 3 cannot be cut into 4 x 4 POD windows"),
        ({"method__pod_scales": "[1, 1000]"}, "A feature map of 6 x 6 cannot be cut into 1000 x 1000 POD windows"),
        ({"method__name": "plop-ewf", "data__crop": 16}, "A feature map of 2 x 2 cannot be cut"),
        ({"method__name": "reminder", "method__pod": "global", "data__crop": 24}, "A feature map of 3 x 3 cannot"),
        ({"run": "n" * 300}, "File name too long"),
    ],
)
def test_what_follows_from_the_settings_is_refused_by_run_dry_run_and_doctor(
    tiny: Make, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = tiny(**{"method__name": "plop", **changes})
    for start in (
        lambda: run_scenario(settings, console=quiet),
        lambda: run_single_step(settings, console=quiet, step=0),
        lambda: plan_scenario(settings),
    ):
        with pytest.raises(UsageError, match=told):
            start()
    found = examine(settings, ScenarioChoices(), iterations=0, budget=1, console=quiet)
    (refused,) = [finding for finding in found.findings if finding.level == "problem"]
    assert told in refused.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"method__pod": "spatial", "data__crop": 16},
        {"method__pod_factor": 0, "method__pod_logits_factor": 0, "data__crop": 16},
        {"method__pod_factor": 0, "method__pod_logits_size": "large", "data__crop": 16},
        {"method__name": "ft", "data__crop": 16},
        {"method__name": "joint", "data__crop": 16},
    ],
)
def test_maps_that_nobody_cuts_may_be_small(tiny: Make, changes: dict[str, Any]) -> None:
    assert plan_scenario(tiny(**{"method__name": "plop", **changes}))["steps"]


def test_room_for_all_checkpoints_is_asked_for_beforehand(
    tiny: Make, plop_run: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (plop_run / "checkpoints" / "step-0.pt").stat().st_size
    monkeypatch.setattr(checks, "free_bytes", lambda _: 2 * size)
    settings = tiny(method__name="ft")
    with pytest.raises(MachineError, match=r"Not enough room for .*: 3 checkpoints need"):
        run_scenario(settings, console=quiet)
    with pytest.raises(MachineError, match="Not enough room"):
        plan_scenario(settings)
    assert not (tmp_path / "run").exists()
    # One step alone has room, and so has a run whose checkpoints are there.
    run_single_step(settings, console=quiet, step=0)
    copy = shutil.copytree(plop_run, tmp_path / "copy")
    assert run_scenario(
        tiny(method__name="plop", run=copy, output__overlays=0), console=quiet, resume=True
    ).is_finished()


def test_evaluate_refuses_a_data_set_with_other_classes(
    plop_run: Path, folder_data: Callable[..., Path], tmp_path: Path, tiny: Make, quiet: Console
) -> None:
    root = folder_data({f"p{number}": [0, 1, 2, 3] for number in range(20)})
    own = tiny(
        data__dataset="folder",
        data__path=root,
        scenario__task="2-1",
        run=tmp_path / "own",
        method__name="ft",
        data__crop=16,
    )
    run_scenario(own, console=quiet)
    (root / "classes.txt").write_text("background\ndog\ncat\nbird\n")
    with pytest.raises(DataError, match="other classes"):
        evaluate_path(tmp_path / "own", quiet)
    (root / "classes.txt").write_text("background\ncat\n")
    with pytest.raises(DataError):
        evaluate_path(tmp_path / "own", quiet)


def test_unwritable_folders_missing_weights_and_gpus(
    tiny: Make, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(UsageError, match="cannot be written"):
        run_scenario(tiny(run=blocker / "run"), console=quiet)
    with pytest.raises(DataError, match="--no-pretrained"):
        run_scenario(tiny(model__pretrained="true"), console=quiet)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(MachineError):
        run_scenario(tiny(compute__gpus=2, run=tmp_path / "gpus"), console=quiet)
    assert not (tmp_path / "gpus").exists()


def test_a_diverging_run_stops_and_keeps_earlier_steps(tiny: Make, tmp_path: Path, quiet: Console) -> None:
    run = tmp_path / "diverge"
    with pytest.raises(PlopError, match="not finite"):
        run_scenario(tiny(run=run, method__name="ft", train__later__lr=1e30, train__later__epochs=3), console=quiet)
    assert load_checkpoint(run / "checkpoints" / "step-0.pt").step == 0
    assert not (run / "checkpoints" / "step-1.pt").exists()


def test_the_plan_counts_without_training(tiny: Make, tmp_path: Path) -> None:
    plan = plan_scenario(tiny(run=tmp_path / "plan"))
    assert [step["step"] for step in plan["steps"]] == [0, 1, 2]
    assert plan["steps"][0]["train"] == 48
    assert plan["steps"][0]["iterations"] == 6
    assert "8 = 1" in plan["batch"]
    assert not (tmp_path / "plan").exists()


def test_metrics_and_events_are_on_the_disk_before_the_checkpoint_that_counts_on_them(
    tiny: Make, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut whatever a checkpoint says is done has its rows."""
    done: list[tuple[str, int]] = []
    folder, flush, save = RunFolder(tmp_path / "run"), RunFolder.flush, save_checkpoint

    def flushed(run: RunFolder) -> None:
        flush(run)
        done.append(("flush", len(run.read_metrics())))

    def saved(path: Path, checkpoint: Any) -> None:
        done.append(("save", len(folder.read_metrics())))
        save(path, checkpoint)

    monkeypatch.setattr(RunFolder, "flush", flushed)
    monkeypatch.setattr("plopcli.engine.step.save_checkpoint", saved)
    run_scenario(tiny(run=folder.path, scenario__task="offline", method__name="ft"), console=quiet)
    rows = len(folder.read_metrics())
    assert rows > 0
    saved_at = done.index(("save", rows))
    assert done[saved_at - 1] == ("flush", rows)
    assert done[saved_at + 1] == ("flush", rows), "and what was measured, before the results say so"
