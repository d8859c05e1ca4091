"""Facts of a run: settings, protocol, versions, device, data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plopcli.reporting.differences import all_settings, changed_from_default
from plopcli.reporting.run_data import RunData
from plopcli.runs.results import Results
from plopcli.settings.sections import RunSettings

_PROTOCOLS = {
    "overlapped": "overlapped: a step has all images with one of its classes, classes of later steps in them or not",
    "disjoint": "disjoint: a step has images with its own and earlier classes only",
    "sequential": "sequential: as disjoint, and old classes keep their labels",
    "domain": "domain-incremental: every step has all classes, in images of its own domains",
}
_EVALUATION = {
    "crop": "central crops: the shorter side brought to the crop's size",
    "full": "whole images, one at a time",
}


def facts(data: RunData) -> dict[str, str]:
    """The facts, by name, without empty ones."""
    pairs = {**_scenario(data.results), **_training(data), **_machine(data)}
    return {name: value for name, value in pairs.items() if value}


def settings(data: RunData) -> dict[str, dict[str, str]]:
    """The settings that are not at their defaults, and all of them; empty where they are unknown."""
    if data.settings is None:
        return {}
    return {"changed": changed_from_default(data.settings), "all": all_settings(data.settings)}


def _scenario(results: Results) -> dict[str, str]:
    evaluation = results.evaluation or ""
    return {
        "data set": results.dataset,
        "task": results.task,
        "protocol": _PROTOCOLS.get(results.protocol, results.protocol),
        "method": results.method,
        "seed": str(results.seed),
        "measured on": f"{results.split or '?'} images, {_EVALUATION.get(evaluation, evaluation)}".rstrip(", "),
        "steps measured": str(len(results.steps)),
    }


def _training(data: RunData) -> dict[str, str]:
    settings, stamp = data.settings, data.stamp
    known = [step.train_seconds for step in data.results.steps if step.train_seconds is not None]
    facts = {
        "batch": str(stamp.get("batch") or ""),
        "batch norm": str(data.results.batch_norm or stamp.get("batch_norm") or ""),
        "precision": str(stamp.get("precision") or ""),
        "training time": f"{sum(known) / 60:.1f} min over {len(known)} steps" if known else "",
        "step 0 from": str(stamp.get("step_0_from") or ""),
    }
    if settings is not None:
        facts = {"network": _network(settings), "pseudo-labels": _pseudo_labels(settings), **facts}
    return facts


def _network(settings: RunSettings) -> str:
    model = settings.model
    start = "ImageNet weights" if model.pretrained else "random weights"
    return f"{model.backbone}, width {model.width}, output stride {model.output_stride}, from {start}"


def _pseudo_labels(settings: RunSettings) -> str:
    """The rule and the estimator, which decide how many pseudo-labels are accepted; empty for methods without."""
    rule, estimator = getattr(settings.method, "pseudo", None), getattr(settings.method, "estimator", None)
    if rule is None or rule == "off":
        return "" if rule is None else "off"
    if rule not in ("entropy", "median"):
        return f"rule {rule}"
    how = {"reference": "as the published code computes them", "exact": "as the paper defines them"}.get(
        str(estimator), ""
    )
    return f"rule {rule}, estimator {estimator}: thresholds {how}"


def _machine(data: RunData) -> dict[str, str]:
    stamp = data.stamp
    machine = _mapping(stamp.get("machine"))
    versions = _mapping(stamp.get("versions"))
    gpus = machine.get("gpus")
    devices = (
        ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else f"CPU, {machine.get('cores', '?')} cores"
    )
    command = stamp.get("command")
    return {
        "device": f"{devices}, {stamp.get('processes', '?')} process(es)" if machine else "",
        "platform": str(machine.get("platform") or ""),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "revision": str(stamp.get("revision") or ""),
        "started": str(stamp.get("time") or "") + (f" (start {len(data.stamps)})" if len(data.stamps) > 1 else ""),
        "data fingerprint": str(stamp.get("data_fingerprint") or "")[:16],
        "command": " ".join(map(str, command)) if isinstance(command, list) else "",
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
