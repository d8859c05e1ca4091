"""The program as a whole: help, version, errors, exit codes, streams."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import typer

from plopcli import __version__
from plopcli.cli.app import app, main
from plopcli.errors import DataError, MachineError

COMMANDS = tuple(typer.main.get_command(app).commands)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PLOP_")]:
        monkeypatch.delenv(name)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_ends_with_examples_to_copy(command, capsys):
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("Usage: plop")
    examples = page.partition("Examples:")[2].strip().splitlines()
    assert len(examples) >= 2
    assert {" ".join(line.split()[:2]) for line in examples} == {f"plop {command}"}


def test_help_groups_options_and_commands(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert {line.split()[0] for line in page.splitlines() if line.startswith("  ") and line[2] != " "} >= {*COMMANDS}
    assert page.index("Training:") < page.index("run-scenario") < page.index("Results:") < page.index("Options:")
    assert main(["run-scenario", "-h"]) == 0
    page = capsys.readouterr().out
    assert page.index("Scenario:") < page.index("--task") < page.index("Recipe:") < page.index("--lr-later")
    assert "[default: 15-1]" in page


def test_examples_in_the_help_are_commands_that_parse(capsys):
    """Every example is parsed up to the point where it would start to work."""
    for command in COMMANDS:
        main([command, "--help"])
        for line in capsys.readouterr().out.partition("Examples:")[2].strip().splitlines():
            words = line.partition("#")[0].split()[1:]
            assert main([*words, "--help"]) == 0, line
            capsys.readouterr()


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"plop {__version__}\n"


def test_start_imports_nothing_heavy():
    heavy = ("torch", "torchvision", "numpy", "pydantic", "matplotlib", "PIL", "rich")
    code = f"import sys, plopcli.cli.app; print([name for name in {heavy} if name in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


def test_help_is_instant():
    def seconds() -> float:
        # Processor time: what else runs on the machine does not count.
        before = os.times()
        assert python("-m", "plopcli", "--help").returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.4


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run-scenari"], "Did you mean 'run-scenario'?"),
        (["run-scenario", "--mehod", "ft"], "--method"),
        (["train-step"], "--step"),
        (["evaluate"], "PATH"),
        (["visualize", "x", "--count", "0"], "--count"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_near(words, part, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert part in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["run-scenario", "--method", "plob"], 2, "Did you mean plop?"),
        (["run-scenario", "--dataset", "tooy"], 2, "Did you mean toy?"),
        (["run-scenario", "--lr", "-0.1"], 2, "train.first.lr = -0.1 (--lr): expected a number > 0."),
        (["run-scenario", "--gpus", "two"], 2, 'compute.gpus = "two" (--gpus)'),
        (["run-scenario", "--config", "none.toml"], 2, "none.toml"),
        (["run-scenario", "--resume", "--overwrite"], 2, "--resume and --overwrite"),
        (["run-scenario", "--overlapped", "--disjoint"], 2, "--overlapped and --disjoint"),
        (["run-scenario", "--protocol", "disjoint", "--sequential"], 2, "--sequential and --protocol"),
        (["run-scenario", "--weights", "w.pth", "--no-pretrained"], 2, "--weights and --no-pretrained"),
        (["methods", "plob"], 2, "Did you mean plop?"),
        (["tasks", "--dataset", "voic"], 2, "Did you mean voc?"),
        (
            ["evaluate", "nowhere", "--split", "vall", "--gpus", "x"],
            2,
            "expected one of test, val, train. Did you mean val?",
        ),
        (["evaluate", "nowhere"], 3, "nowhere does not exist"),
        (["visualize", "nowhere"], 3, "nowhere does not exist"),
        (["prepare", "toy"], 3, "plop download toy"),
        (["run-scenario", "--dataset", "toy", "--dry-run"], 3, "plop download toy"),
        (["download", "voc", "--seed", "3"], 2, "--seed is for the generated data set"),
    ],
)
def test_mistakes_end_in_one_clear_message(words, code, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.err.count("Error: ") == 1
    assert part in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def stamp_that_raises(monkeypatch, error: BaseException) -> None:
    def raises() -> None:
        raise error

    monkeypatch.setattr("plopcli.runs.environment.environment_stamp", raises)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("Broken.", "Mend it."), 3),
        (MachineError("Broken.", "Mend it."), 4),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 4),
        (MemoryError(), 4),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), 4),
        (KeyboardInterrupt(), 130),
        (ValueError("our own"), 1),
    ],
)
def test_exit_codes(error, code, monkeypatch, capsys):
    stamp_that_raises(monkeypatch, error)
    assert main(["env"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert ("bug in plop" in printed.err) == (code == 1)


@pytest.mark.parametrize("by", ["option", "variable"])
def test_debug_shows_the_traceback(by, monkeypatch, capsys):
    stamp_that_raises(monkeypatch, DataError("Broken.", "Mend it."))
    if by == "variable":
        monkeypatch.setenv("PLOP_DEBUG", "1")
    assert main(["env"] if by == "variable" else ["--debug", "env"]) == 3
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert "Hint: Mend it." in message


def test_markup_and_long_lines_in_messages_are_left_alone(monkeypatch, capsys):
    path = "/" + "/".join(["[bold]folder"] * 30)
    stamp_that_raises(monkeypatch, DataError(f"{path} is broken."))
    main(["env"])
    assert f"Error: {path} is broken.\n" in capsys.readouterr().err


def test_closed_pipe_is_no_error():
    code = "import sys; from plopcli.cli.app import app, main; sys.exit(main(['tasks', '--json']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        # What is no result is said on the other stream, as ever.
        assert process.stderr.read().splitlines()[1:] == []
        assert process.wait(60) == 0


def test_shell_completion_offers_commands_and_values():
    def complete(line: str) -> str:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split())), "_PLOP_COMPLETE": "complete_bash"}
        return python("-m", "plopcli", **words).stdout

    assert "run-scenario" in complete("plop ")
    assert "photos-small" in complete("plop run-scenario --preset ")
    assert "disjoint" in complete("plop run-scenario --protocol ")


def test_env_as_json(capsys):
    assert main(["env", "--json"]) == 0
    stamp = json.loads(capsys.readouterr().out)
    assert stamp["versions"]["plop"] == __version__
    assert stamp["machine"]["cores"] >= 1
    assert main(["env"]) == 0
    assert f"plop         {__version__}" in capsys.readouterr().out


def test_large_pages_are_used_unless_the_environment_decides_otherwise(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert main(["--version"]) == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert main(["--version"]) == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_home_in_the_paths_of_options(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.toml").write_text("[train]\nbatch = 5\n")
    assert main(["run-scenario", "--config=~/mine.toml", "--run=~/x", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "batch = 5  # mine.toml" in printed
    assert f'run = "{tmp_path}/x"' in printed
