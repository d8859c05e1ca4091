"""ImageNet weights for the backbones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from plopcli.console.log import RunLog
from plopcli.data.download.delivery import DownloadChoices, verify
from plopcli.data.download.sources import WEIGHTS
from plopcli.data.http import fetch
from plopcli.data.remote import RemoteFile, mirrored
from plopcli.errors import DataError, UsageError, unknown_name
from plopcli.files.atomic import write_atomic
from plopcli.files.disk import ensure_room, writing

DEFAULT_BACKBONE = "resnet101"


def download_weights(
    data_root: Path, backbone: str | None, source: str | None, choices: DownloadChoices, log: RunLog
) -> Path:
    """Gets the weights of a backbone into ``data_root``/weights.

    Args:
        data_root: Folder of all data.
        backbone: Its name, by default resnet101.
        source: ``iabn`` (the papers' files) or ``torchvision``; by default where training looks for that backbone.
        choices: What the user says; a file of the user's own takes the place of the download.
        log: Tells about everything.

    Raises:
        UsageError: No such backbone or source, or not this pair.
        DataError: The file cannot be had, or does not hold the weights of this backbone.
        MachineError: It cannot be written.
    """
    from plopcli.models.segmenter import BACKBONES
    from plopcli.models.weights import default_weights_path

    backbone = backbone or DEFAULT_BACKBONE
    if backbone not in BACKBONES:
        raise unknown_name("backbone", backbone, BACKBONES)
    if source is not None and source not in WEIGHTS:
        raise unknown_name("source", source, WEIGHTS)
    expected = default_weights_path(backbone, data_root)
    source = source or next(name for name, files in WEIGHTS.items() if _place(data_root, name, backbone) == expected)
    file = WEIGHTS[source].get(backbone)
    if file is None:
        others = [name for name, files in WEIGHTS.items() if backbone in files]
        raise UsageError(
            f"Source {source} has no weights of {backbone}.", f"There are some from --source {' or '.join(others)}."
        )
    target = _place(data_root, source, backbone)
    if len(choices.own) > 1:
        raise UsageError("plop download weights takes one --from, the file with the weights.", "Pass one of them.")

    def check(path: Path) -> None:
        check_weights(path, backbone, source)

    if choices.own:
        _take(choices.own[0], file, target, choices.accept_checksum, check, log)
    elif target.is_file() and file.checksum is None:
        check(target)  # nobody has published what it should hash to
    else:
        _fetch(file, target, choices.accept_checksum, check, log)
    _say_how_to_use(target, expected, source, backbone, log)
    return target


def check_weights(path: Path, backbone: str, source: str) -> None:
    """Loads a file with weights into its backbone.

    Raises:
        DataError: It does not fit, or is no such file.
    """
    from plopcli.models.segmenter import build_segmenter
    from plopcli.models.weights import load_backbone_weights
    from plopcli.settings.sections import ModelSettings

    if source == "torchvision" and backbone != "mobilenet_v2":
        settings = ModelSettings(backbone=backbone, norm="bn", activation="relu")
    else:
        settings = ModelSettings(backbone=backbone)
    load_backbone_weights(build_segmenter(settings, (2,)), path)


def _fetch(file: RemoteFile, target: Path, accept: bool, check: Callable[[Path], None], log: RunLog) -> None:
    remote = mirrored(file)
    if not remote.urls:
        raise DataError(
            f"{file.name} has no address to fetch it from.",
            "The authors of In-Place ABN hand it out: https://github.com/mapillary/inplace_abn#training-on-imagenet-1k.\n"
            "Take your copy with --from FILE, or other weights with --source torchvision.",
        )
    if not target.is_file():
        ensure_room(target.parent, file.size, f"for {file.name}")
    fetch(remote, target, log, accept_checksum=accept, check=check)


def _take(own: Path, file: RemoteFile, target: Path, accept: bool, check: Callable[[Path], None], log: RunLog) -> None:
    """Copies the user's own file, if it is what it should be."""
    if not own.is_file():
        raise DataError(f"There is no file {own}.")
    verify(own, file, accept, log)
    check(own)
    if own.resolve() == target.resolve():
        return
    ensure_room(target.parent, own.stat().st_size, f"for a copy of {own.name}")
    with own.open("rb") as source, writing(target):
        write_atomic(target, lambda file: shutil.copyfileobj(source, file))


def _say_how_to_use(target: Path, expected: Path, source: str, backbone: str, log: RunLog) -> None:
    """Tells which settings of a run go with the weights; those of the papers need none."""
    words = []
    if target != expected:
        words.append(f"--weights {target}")
    if source == "torchvision" and backbone != "mobilenet_v2":
        words += ["--set model.norm=bn", "--set model.activation=relu"]
    usage = f"use them with --backbone {backbone} {' '.join(words)}".rstrip()
    log.say(f"Weights of {backbone} ({source}) are in {target}; {usage}")


def _place(data_root: Path, source: str, backbone: str) -> Path:
    """Where the weights go, so that training finds those that it looks for by default."""
    return data_root / "weights" / (f"{backbone}_iabn_sync.pth.tar" if source == "iabn" else f"{backbone}.pth")
