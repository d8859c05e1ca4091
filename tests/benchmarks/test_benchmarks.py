"""Every benchmark runs, on sizes whose figures mean nothing, and what it derives from its measurements is right."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_session, leak, memory, report, scaling, train_step
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.workload import TINY_NETWORK, TRAINABLE, Workload, build_training, compute_of
from plopcli.devices.process import Process

CPU = Process(torch.device("cpu"))


def run(folder: Path, name: str, *options: str) -> dict[str, Any]:
    assert main([name, "--tiny", "--results", str(folder), *options]) == 0
    figures: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    assert figures["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "processor" in figures["environment"]
    return figures


def test_data_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    figures = run(tmp_path, "data-path")
    assert figures["milliseconds_per_image"]["plop"] > 0
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr().out
    assert "ms an image" in shown
    assert str(tmp_path / "data-path.json") in shown


def test_train_step(tmp_path: Path) -> None:
    cases = run(tmp_path, "train-step", "--method", "plop", "mib")["cases"]
    cases += run(tmp_path, "train-step", "--in-place-norm", "on")["cases"]
    assert [(case["method"], case["traits"]["in_place_norm"]) for case in cases] == [
        ("plop", False),
        ("mib", False),
        ("plop", True),
    ]
    for case in cases:
        assert ("loop" in case["seconds"]) == (case["method"] == "plop"), "MiB's loss is written out nowhere"
        assert ("usual" in case["seconds"]) == case["traits"]["in_place_norm"], "compared with what it differs from"
        assert case["plop_over_bare"]["min"] <= case["plop_over_bare"]["median"] <= case["plop_over_bare"]["max"]
        assert len(case["all_seconds"]["bare"]) == case["pairs"] == 3


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--compile", "aot_eager"), marks=pytest.mark.slow),
        ("--precision", "bf16", "--layout", "contiguous"),
    ],
)
def test_traits_of_a_train_step(options: tuple[str, ...], tmp_path: Path) -> None:
    (case,) = run(tmp_path, "train-step", "--method", "ft", *options)["cases"]
    assert case["traits"][options[0].removeprefix("--")] == options[1]
    assert case["seconds"].keys() == {"plop", "bare", "loop", "usual"}


@pytest.mark.parametrize("method", ["plop", "ft"])
def test_the_loop_by_hand_computes_the_method(method: str) -> None:
    work = Workload(method, TINY_NETWORK, compute_of("cpu"), 2, 64)
    training = build_training(work, CPU)
    loss = train_step.loss_by_hand(training.method)
    assert loss is not None
    loop = train_step.plain_loop(training, loss)
    for _ in range(3):
        assert loop() == pytest.approx(training.iterate()[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("method", TRAINABLE)
def test_every_method_has_something_to_do(method: str) -> None:
    training = build_training(Workload(method, TINY_NETWORK, compute_of("cpu"), 2, 64), CPU)
    (row,) = training.iterate()
    assert min(row["terms"].values()) > 0, "no term is idle"
    assert ("regulariser" in row["terms"]) == (method in ("ewc", "pi", "rw"))


def test_evaluation(tmp_path: Path) -> None:
    figures = run(tmp_path, "evaluation")
    assert figures["images_per_second"].keys() == {"measure", "bare"}
    assert run(tmp_path, "evaluation", "--evaluation", "full", "--images", "1")["sides"] == [375, 500]


def test_index(tmp_path: Path) -> None:
    figures = run(tmp_path, "index")
    assert figures["masks"] == 10
    assert 0 < figures["empty_splits"] < figures["splits"]
    assert figures["seconds"]["find again"] < figures["seconds"]["count"]


def test_index_leaves_a_data_set_alone(tmp_path: Path, toy_root: Path) -> None:
    before = sorted(path.name for path in (toy_root / "toy").iterdir())
    figures = run(tmp_path, "index", "--data", str(toy_root / "toy"), "--dataset", "toy")
    assert figures["masks"] == 48 + 16 + 23
    assert sorted(path.name for path in (toy_root / "toy").iterdir()) == before


@pytest.mark.parametrize("traits", [{}, {"in_place_norm": True}, {"checkpointing": True}], ids=str)
def test_memory_counts_what_the_dry_run_estimates(traits: dict[str, bool]) -> None:
    work = Workload("plop", TINY_NETWORK, compute_of("cpu", **traits), 2, 64)
    figures = memory.measure_case(work)
    assert figures["saved_for_backward"] == pytest.approx(memory.estimated(work), rel=0.02)
    assert figures["peak"] >= figures["before"] > 0
    assert figures["allocated"] > figures["saved_for_backward"]


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    plain, in_place = run(tmp_path, "memory")["cases"]
    assert in_place["saved_for_backward"] < plain["saved_for_backward"]


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    picture = tmp_path / "scaling.png"
    figures = run(tmp_path, "scaling", "--plot", str(picture))
    assert [point["classes"] for point in figures["classes"]] == [6, 12]
    assert [point["steps"] for point in figures["steps"]] == [2, 3]
    assert {point["classes"] for point in figures["steps"]} == {11}
    assert figures["growth"]["classes"].keys() == figures["classes"][0]["seconds"].keys()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_growth_is_the_exponent_of_the_larger_sizes() -> None:
    points = [{"classes": n, "least_seconds": {"a": 3.0 + 2 * n, "b": n**2 / 7}} for n in (1, 10, 100, 1000, 10_000)]
    growth = scaling.growth(points, "classes")
    assert growth["a"] == pytest.approx(1, abs=0.01)
    assert growth["b"] == pytest.approx(2)


@pytest.mark.slow
def test_leak(tmp_path: Path) -> None:
    (case,) = run(tmp_path, "leak")["cases"]
    assert case["new_tensors"] == 0
    assert len(case["resident_mib"]) == case["iterations"] == 12
    assert abs(case["growth_mib"]) < 20


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    build = build_training

    def leaking(*arguments: Any) -> Any:
        training = build(*arguments)
        losses = training.method.losses

        def keep(*given: Any) -> Any:
            kept.append(torch.ones(9 * 2**20))  # so large that no memory freed by other tests serves it
            return losses(*given)

        monkeypatch.setattr(training.method, "losses", keep)
        return training

    monkeypatch.setattr(leak, "build_training", leaking)
    figures = leak.measure_case(leak.CASES["tiny"], "ft", "cpu")
    assert figures["new_tensors"] == 6, "one of every iteration after the warm-up"
    assert figures["growth_mib"] > 10


@pytest.mark.slow
def test_processes(tmp_path: Path) -> None:
    figures = run(tmp_path, "processes")
    assert figures["images_per_second"].keys() == {"1", "2"}
    assert figures["speed_up"]["1"]["median"] == 1


def test_options_of_all_are_known() -> None:
    parser = __import__("benchmarks.__main__").__main__._parser()
    for name, benchmark in BENCHMARKS.items():
        parser.parse_args([name, *benchmark.brief])
        parser.parse_args([name, *benchmark.tiny])


def test_candidates_take_turns_until_time_is_up() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = report.interleaved(calls, rounds=5, warmup=1, seconds=0)
    assert order == ["a", "b"] * (1 + report.LEAST_ROUNDS)
    assert [len(values) for values in times.values()] == [report.LEAST_ROUNDS] * 2
    assert report.ratios({"a": [2, 9, 4], "b": [1, 3, 1]}, "a", "b") == {"min": 2, "median": 3, "max": 4}


def test_limits_of_time_nest() -> None:
    session = SimpleNamespace(left=60.0, found={})
    session.note = lambda name, value, group=None: session.found.update({name: value})
    start = time.monotonic()
    with gpu_session.guarded(session, "outer", 0.5):  # type: ignore[arg-type]
        with gpu_session.guarded(session, "inner", 0.1):  # type: ignore[arg-type]
            time.sleep(5)
        with gpu_session.guarded(session, "broken", 5):  # type: ignore[arg-type]
            raise ValueError("no kernel")
        time.sleep(5)
    assert time.monotonic() - start < 5
    assert session.found.keys() == {"inner", "broken", "outer"}
    assert "no kernel" in session.found["broken"]["failed"]
    assert session.found["outer"]["failed"].startswith("stopped")


@pytest.mark.slow
def test_gpu_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tiny", "--device", "cpu", "--results", str(tmp_path)]
    assert gpu.main([*options, "--only", "ceiling", "loss-layout", "data-path"]) == 0
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["ceiling"]["bf16_tflops"] > 0
    assert figures["loader, images per second"]["workers 1"] > 0
    assert figures["seconds"].keys() == {"ceiling", "loss-layout", "data-path"}
    assert "two GPUs" in figures["note"]
    if not torch.cuda.is_available():
        assert gpu.main([]) == 4
        assert "--device cpu" in capsys.readouterr().err


def test_gpu_checks_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = gpu_session.Session(CPU, True, tmp_path, None, time.monotonic() + 60)
    for check in (gpu_checks.losses_match, gpu_checks.overflow_is_skipped, gpu_checks.transfer_is_exact):
        assert check(session)["passed"]
    moved = gpu_checks.on_device
    monkeypatch.setattr(
        gpu_checks,
        "on_device",
        lambda batches, device, channels_last: (
            batch._replace(images=batch.images * (1 + 1e-3 * (device is CPU.device)))
            for batch in moved(batches, device, channels_last=channels_last)
        ),
    )
    assert not gpu_checks.transfer_is_exact(session)["passed"]
    monkeypatch.setattr(gpu_checks, "CLOSE", 0.0)
    assert not gpu_checks.losses_match(session)["passed"]


@pytest.mark.slow
def test_the_whole_gpu_script(tmp_path: Path) -> None:
    assert gpu.main(["--tiny", "--device", "cpu", "--results", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert not [name for name, case in figures["cases"].items() if "failed" in case]
    assert not [name for name, check in figures["checks"].items() if not check.get("passed")]
    assert figures["tests"]["passed"]
    assert (tmp_path / "gpu-profile.txt").stat().st_size > 0
