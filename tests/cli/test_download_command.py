"""`plop download` as a user runs it: what is printed, exit codes, and going on after a stop."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fake_archives as fake
import pytest
from local_host import Host, hang, local_host

from plopcli.cli.app import main

ADE = ["download", "ade", "--accept-checksum"]


@pytest.fixture
def host(monkeypatch, tmp_path) -> Iterator[Host]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with local_host() as host:
        monkeypatch.setenv("PLOP_MIRROR", host.address)
        host.files["ADEChallengeData2016.zip"] = fake.zipped(fake.ade_files())
        yield host


def wait_for(what, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def is_unpacked(root: Path) -> bool:
    files = {str(path.relative_to(root / "ade")) for path in (root / "ade").rglob("*") if path.is_file()}
    return files - {".plop-download.lock"} == set(fake.ade_files())


def test_the_path_is_all_that_standard_output_gets(host, capsys):
    assert main(ADE) == 0
    printed = capsys.readouterr()
    assert printed.out == "data/ade\n"
    assert "next: plop prepare ade" in printed.err
    assert main([*ADE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "ade", "path": "data/ade"}
    assert len(host.requests) == 1
    assert is_unpacked(Path("data"))


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["voc"], 3, "404 Not Found"),
        (["ade"], 3, "Kept as data/ade/archives/ADEChallengeData2016.zip.bad"),
        (["vocc"], 2, "Did you mean voc?"),
        (["cityscapes"], 3, "404 Not Found"),
        (["folder"], 2, "nothing to download"),
        (["weights", "--backbone", "resnet17"], 2, "Did you mean resnet"),
        (["weights", "--source", "torchvison"], 2, "Did you mean torchvision?"),
        (["ade", "--backbone", "resnet18"], 2, "--backbone is for weights, not for ade"),
        (["voc", "--size", "64"], 2, "--size is for the generated data set, not for voc"),
        (["toy", "--from", "a.zip"], 2, "--from is for downloads, and toy is generated"),
        (["ade", "--from", "nothing.zip"], 3, "There is no file nothing.zip"),
        (["ade", "--from", "wrong.zip"], 3, "wrong.zip is no zip or tar archive"),
        (["ade", "--data-root", "wrong.zip"], 4, "wrong.zip/ade cannot be written: Not a directory"),
        (["ade", "--data-root", "/proc/nowhere"], 4, "/proc/nowhere"),
    ],
)
def test_mistakes_and_failures_end_in_one_clear_message(words, code, part, host, capsys):
    Path("wrong.zip").write_text("Please log in")
    assert main(["download", *words]) == code
    printed = capsys.readouterr()
    assert printed.err.count("Error: ") == 1
    assert part in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_mirror_must_be_an_address(monkeypatch, capsys):
    monkeypatch.setenv("PLOP_MIRROR", "/data/mirror")
    assert main(["download", "ade"]) == 2
    assert "PLOP_MIRROR = /data/mirror is no address of a host" in capsys.readouterr().err


def test_a_full_disk_exits_4(host, monkeypatch, capsys):
    monkeypatch.setattr("plopcli.files.disk.free_bytes", lambda _: 1_000)
    assert main(ADE) == 4
    assert "2.1 GB are needed (967.4 MB of archives and 1.1 GB unpacked), 1.0 kB are free" in capsys.readouterr().err
    assert host.requests == []


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_program_that_is_stopped_goes_on_when_it_is_started_again(stop, code, host, tmp_path):
    content = host.files["ADEChallengeData2016.zip"]
    half = len(content) // 2
    host.answers = [hang(half)]
    command = [sys.executable, "-m", "plopcli", *ADE]
    part = tmp_path / "data/ade/archives/ADEChallengeData2016.zip.part"
    # A shell that starts tests in the background makes them, and what they start, ignore SIGINT.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ, stdout=-1, stderr=-1, text=True, preexec_fn=heeding
    ) as process:
        wait_for(lambda: part.exists() and part.stat().st_size == half)
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert second.returncode == 4
        assert "Another plop download is filling data/ade" in second.stderr
        process.send_signal(stop)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert ("are kept. The same command goes on there." in said) == (stop == signal.SIGINT)
    assert not (tmp_path / "data/ade/ADEChallengeData2016").exists()

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, "data/ade\n"), again.stderr
    assert host.ranges == [None, f"bytes={half}-"]
    assert is_unpacked(tmp_path / "data")


def test_a_program_that_is_killed_while_it_unpacks_leaves_no_half_data_set(host, tmp_path):
    """Killed between the last file and the move into place: what lay aside is thrown away, the archive is not."""
    held = (
        "import os, plopcli.data.download.delivery as d, plopcli.cli.app as a\n"
        "d.move_folder = lambda *_: os.kill(os.getpid(), 9)\n"
        f"a.main({ADE!r})\n"
    )
    process = subprocess.run([sys.executable, "-c", held], cwd=tmp_path, capture_output=True, check=False)
    assert process.returncode == -9
    assert (tmp_path / "data/ade/.unpacking").is_dir()
    assert not (tmp_path / "data/ade/ADEChallengeData2016").exists()
    assert main(ADE) == 0
    assert len(host.requests) == 1
    assert is_unpacked(tmp_path / "data")
