"""Batches depend on the seed and the position in training, on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plopcli.data.loading import (
    PREPARING,
    BatchSchedule,
    EvaluationImages,
    Key,
    LoadedBatch,
    Replayed,
    TrainingImages,
    evaluation_batches,
    training_batches,
)
from plopcli.data.samples import Exemplar
from plopcli.data.transforms import MEAN, STD, central_crop, draw_window, normalise, training_crop
from plopcli.errors import DataError, UsageError
from plopcli.resolution.layers import Resolved
from plopcli.scenarios.scenario import Scenario

Batches = list[LoadedBatch]


def _images(tiny: Callable[..., Resolved], **changes: object) -> TrainingImages:
    settings = tiny(**changes).settings
    return TrainingImages(Scenario.from_settings(settings).training(0), settings.data)


def _equal(left: Batches, right: Batches) -> bool:
    return len(left) == len(right) and all(
        torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels) and one.names == other.names
        for one, other in zip(left, right, strict=True)
    )


def test_workers_cache_and_start_change_nothing(tiny: Callable[..., Resolved]) -> None:
    plan = BatchSchedule(images=20, batch=8, micro_batch=8, seed=3, step=1)
    plain = list(training_batches(_images(tiny, data__workers=0), plan, 0, 5))
    assert _equal(plain, list(training_batches(_images(tiny, data__workers=2), plan, 0, 5)))
    assert _equal(plain, list(training_batches(_images(tiny, data__cache="true"), plan, 0, 5)))
    assert _equal(plain[3:], list(training_batches(_images(tiny, data__workers=0), plan, 3, 5)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_clear_error_from_any_process(
    tiny: Callable[..., Resolved], folder_data: Callable[..., Path], workers: int
) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(10)})
    changes = {"data__dataset": "folder", "data__path": root, "scenario__task": "2-1", "data__workers": workers}
    images = _images(tiny, **changes)
    broken = root / "images" / "p2.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError) as error:
        list(training_batches(images, BatchSchedule(8, 4, 4, 0, 0), 0, 4))
    assert error.value.message.startswith(f"Image {broken} cannot be decoded")
    assert error.value.hint


def test_processes_and_accumulation_share_one_batch(tiny: Callable[..., Resolved]) -> None:
    images = _images(tiny, data__workers=0)
    whole = list(training_batches(images, BatchSchedule(20, 8, 8, 3, 1), 0, 2))
    pieces = [
        list(training_batches(images, BatchSchedule(20, 8, 2, 3, 1, rank=rank, world=2), 0, 2)) for rank in range(2)
    ]
    for iteration, (pixels, labels, *_) in enumerate(whole):
        parts = [piece for rank in range(2) for piece in pieces[rank][2 * iteration : 2 * iteration + 2]]
        assert torch.equal(torch.cat([part[0] for part in parts]), pixels)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_epochs_seeds_steps_and_purposes_differ() -> None:
    plan = BatchSchedule(images=50, batch=8, micro_batch=8, seed=3, step=1)
    orders = [
        plan.order(0),
        plan.order(1),
        BatchSchedule(50, 8, 8, 4, 1).order(0),
        BatchSchedule(50, 8, 8, 3, 2).order(0),
        BatchSchedule(50, 8, 8, 3, 1, purpose=PREPARING).order(0),
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


def test_an_epoch_drops_the_incomplete_batch_and_repeats_no_image() -> None:
    plan = BatchSchedule(images=21, batch=8, micro_batch=4, seed=0, step=0)
    assert plan.iterations_per_epoch == 2
    assert plan.accumulation == 2
    keys = [key for micro in plan.micro_batches(0, 4) for key in micro]
    assert [key.epoch for key in keys] == [0] * 16 + [1] * 16
    assert len({key.image for key in keys[:16]}) == 16


def test_fewer_images_than_a_batch_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match="--batch 5"):
        BatchSchedule(images=5, batch=8, micro_batch=8, seed=0, step=2)


def test_evaluation_counts_each_image_once_over_processes(tiny: Callable[..., Resolved]) -> None:
    settings = tiny(data__workers=0).settings
    images = EvaluationImages(Scenario.from_settings(settings).evaluation(0, "test"), settings.data)
    single = list(evaluation_batches(images, 5))
    ranks = [list(evaluation_batches(images, 5, rank=rank, world=2)) for rank in range(2)]
    assert sum(len(pixels) for pixels, *_ in single) == len(images.split)
    assert [len(rank) for rank in ranks] == [3, 2]
    merged = [ranks[number % 2][number // 2] for number in range(len(single))]
    assert _equal(single, merged)


def test_whole_images_come_one_by_one(tiny: Callable[..., Resolved]) -> None:
    settings = tiny(data__workers=0, data__evaluation="full").settings
    images = EvaluationImages(Scenario.from_settings(settings).evaluation(0, "test"), settings.data)
    shapes = {tuple(pixels.shape) for pixels, *_ in evaluation_batches(images, 5)}
    assert shapes == {(1, 64, 64, 3)}


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (100, 1000), (512, 512), (1, 1)])
def test_windows_lie_inside_and_keep_their_limits(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        box = draw_window(*size, (0.5, 2.0), (3 / 4, 4 / 3), rng)
        assert 0 <= box.left <= box.left + box.width <= size[0]
        assert 0 <= box.top <= box.top + box.height <= size[1]
        assert box.width > 0
        assert box.height > 0
        if min(size) > 100:
            assert 0.7 < box.width / box.height < 1.4
            assert box.width * box.height >= 0.49 * size[0] * size[1]


def test_a_crop_is_that_of_cutting_and_resizing() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    mask = Image.fromarray(rng.integers(0, 21, (60, 90), dtype=np.uint8))
    pixels, ids = training_crop(image, mask, 32, (0.5, 1.0), (0.75, 1.33), 1.0, np.random.default_rng(7))
    box = draw_window(90, 60, (0.5, 1.0), (0.75, 1.33), np.random.default_rng(7))
    window = (box.left, box.top, box.left + box.width, box.top + box.height)
    cut = image.crop(window).resize((32, 32), Image.Resampling.BILINEAR)
    cut_ids = mask.crop(window).resize((32, 32), Image.Resampling.NEAREST)
    assert np.abs(pixels.astype(int) - np.asarray(cut)[:, ::-1].astype(int)).max() <= 1
    assert np.array_equal(ids, np.asarray(cut_ids)[:, ::-1])


def test_image_and_mask_stay_aligned() -> None:
    ids = np.zeros((80, 120), dtype=np.uint8)
    ids[20:60, 30:70] = 1
    image = Image.fromarray(np.repeat(255 * ids[:, :, None], 3, axis=2))
    for seed in range(20):
        pixels, labels = training_crop(
            image, Image.fromarray(ids), 64, (0.5, 2.0), (0.75, 1.33), 0.5, np.random.default_rng(seed)
        )
        assert ((pixels[:, :, 0] > 127) == labels).mean() > 0.97


def test_central_crop_takes_the_middle() -> None:
    gradient = np.tile(np.arange(200, dtype=np.uint8)[None], (100, 1))
    pixels, ids = central_crop(Image.fromarray(gradient).convert("RGB"), Image.fromarray(gradient), 100)
    assert pixels.shape == (100, 100, 3)
    assert ids[0, 0] == 50
    assert ids[0, -1] == 149


def test_normalise_gives_imagenet_statistics_in_either_layout() -> None:
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    expected = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    for channels_last in (True, False):
        images = normalise(pixels, channels_last=channels_last)
        assert images.shape == (2, 3, 5, 7)
        torch.testing.assert_close(images.permute(0, 2, 3, 1), expected, atol=1e-5, rtol=1e-5)
        assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_labels_are_learned_ids(tiny: Callable[..., Resolved], toy_root: Path) -> None:
    settings = tiny(data__workers=0).settings
    scenario = Scenario.from_settings(settings)
    images = TrainingImages(scenario.training(1), settings.data)
    new = 19
    for _, labels, *_ in training_batches(images, BatchSchedule(len(images.split), 1, 1, 0, 1), 0, 3):
        assert set(labels.unique().tolist()) <= {0, new, 255}


@pytest.mark.parametrize("share", [0.25, 0.5, None])
def test_exemplars_take_their_share_whatever_the_processes(share: float | None) -> None:
    replayed = Replayed(6, share)
    whole = BatchSchedule(40, 8, 8, 3, 1, replayed=replayed)
    batches = list(whole.micro_batches(0, 10))
    parts = [
        list(BatchSchedule(40, 8, 2, 3, 1, rank=rank, world=2, replayed=replayed).micro_batches(0, 10))
        for rank in range(2)
    ]
    for number, batch in enumerate(batches):
        pieces = [key for part in parts for piece in part[2 * number : 2 * number + 2] for key in piece]
        assert pieces == batch
    remembered = [[key for key in batch if key.source == 1] for batch in batches]
    if share is None:
        epoch = [key.image for batch in batches[: whole.iterations_per_epoch] for key in batch if key.source == 1]
        assert whole.iterations_per_epoch == 5
        assert len(epoch) == len(set(epoch)) <= 6
    else:
        assert {len(keys) for keys in remembered} == {round(8 * share)}
        assert {key.image for keys in remembered for key in keys} == set(range(6))
        assert all(len({key.image for key in keys}) == len(keys) for keys in remembered)
    plain = list(BatchSchedule(40, 8, 8, 3, 1).micro_batches(0, 4))
    if share is not None:  # those of the step's own images that stay are drawn as ever
        for batch, other in zip(batches, plain, strict=False):
            assert all(a == b for a, b in zip(batch, other, strict=True) if a.source == 0)


def test_sources_have_labels_and_augmentation_of_their_own(tiny: Callable[..., Resolved]) -> None:
    settings = tiny(data__workers=0).settings
    scenario = Scenario.from_settings(settings)
    first = scenario.training(0)
    kept = [Exemplar(sample.name, 0) for sample in first.samples[:3]]
    (exemplars,) = scenario.exemplars(kept)
    images = TrainingImages(scenario.training(1), settings.data, (exemplars,))
    schedule = BatchSchedule(len(images.split), 1, 1, 0, 1, replayed=Replayed(3, 0.5))
    one = images.augmented(Key(0, 1, 1), schedule)
    assert (one.name, one.source) == (first.samples[1].name, 1)
    assert set(np.unique(one.labels)) <= {0, *range(1, 19), 255}
    again = images.augmented(Key(1, 1, 1), schedule)
    assert not np.array_equal(one.pixels, again.pixels)
    with pytest.raises(DataError, match="lacks exemplars"):
        scenario.exemplars([Exemplar("nowhere", 0)])
