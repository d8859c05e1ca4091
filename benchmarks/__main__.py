"""`python -m benchmarks NAME [options]`: runs a benchmark, prints a table and writes benchmarks/results/NAME.json."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import data_path, evaluation, index, leak, memory, processes, scaling, train_step
from benchmarks.report import RESULTS, Benchmark, save
from plopcli.devices.host_memory import use_large_pages

BENCHMARKS: dict[str, Benchmark] = {
    "data-path": data_path.BENCHMARK,
    "train-step": train_step.BENCHMARK,
    "evaluation": evaluation.BENCHMARK,
    "index": index.BENCHMARK,
    "memory": memory.BENCHMARK,
    "scaling": scaling.BENCHMARK,
    "leak": leak.BENCHMARK,
    "processes": processes.BENCHMARK,
}
#: What `all` may take, in seconds; a benchmark that does not get to its turn is named.
TIME_BOX = 690.0


def main(arguments: Sequence[str] | None = None) -> int:
    use_large_pages()  # as the program does
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    chosen = parser.parse_args(given)
    if chosen.name == "all":
        return _all(chosen)
    benchmark = BENCHMARKS[chosen.name]
    if chosen.tiny:
        chosen = parser.parse_args([chosen.name, *benchmark.tiny, *given[1:]])
    start = time.perf_counter()
    figures = benchmark.measure(chosen)
    figures = {**figures, "seconds_in_all": time.perf_counter() - start, "options": _plain(chosen)}
    print(benchmark.show(figures))
    print(f"written to {save(chosen.name, figures, chosen.results, chosen.tag)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, benchmark in BENCHMARKS.items():
        own = names.add_parser(name, help=benchmark.summary, description=benchmark.summary)
        _add_shared(own)
        benchmark.options(own)
    everything = names.add_parser("all", help=f"every one of these, briefly: at most {TIME_BOX / 60:.0f} minutes or so")
    _add_shared(everything)
    everything.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help="leave the others out")
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tag", help="goes into the name of the file: NAME-TAG.json")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the file goes")
    parser.add_argument("--tiny", action="store_true", help="sizes that only prove that it runs")


def _all(chosen: argparse.Namespace) -> int:
    """Every benchmark in a process of its own, so that none inherits the memory of another."""
    began = time.perf_counter()
    failed: list[str] = []
    for name in chosen.only or BENCHMARKS:
        options = ["--tiny"] if chosen.tiny else list(BENCHMARKS[name].brief)
        options += ["--results", str(chosen.results.resolve()), *(["--tag", chosen.tag] if chosen.tag else [])]
        print(f"== {name} {' '.join(options)}", flush=True)
        left = TIME_BOX - (time.perf_counter() - began)
        try:
            command = [sys.executable, "-m", "benchmarks", name, *options]
            subprocess.run(command, cwd=Path(__file__).parent.parent, timeout=max(left, 1), check=True)
        except subprocess.SubprocessError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
    print(f"== {time.perf_counter() - began:.0f} s{'; not done: ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


def _plain(chosen: argparse.Namespace) -> dict[str, object]:
    plain = (int, float, str, bool, type(None), list, tuple)
    return {name: value if isinstance(value, plain) else str(value) for name, value in vars(chosen).items()}


if __name__ == "__main__":
    sys.exit(main())
