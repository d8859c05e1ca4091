"""Fetching from hosts that fail in every way; the file is right in the end, or there is one clear error."""

from __future__ import annotations

import email.utils
import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from local_host import (
    Handler,
    announced,
    chunked,
    cut,
    dripping,
    endless,
    good,
    hang,
    ignoring_if_range,
    never_beginning,
    no_ranges,
    other_piece,
    status,
    web_page,
    without_length,
)
from rich.console import Console

from plopcli.console.log import RunLog
from plopcli.data import http
from plopcli.data.http import Patience, fetch
from plopcli.data.remote import Checksum, RemoteFile
from plopcli.errors import DataError, MachineError

CONTENT = bytes(range(256)) * 4000
QUICK = Patience(timeout=0.3, tries=4, tries_unheard=2, pause=0.01, longest=2.0, connections=30)
MD5 = Checksum("md5", hashlib.md5(CONTENT).hexdigest())


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def get(host, said, tmp_path):
    """Fetches a.bin from the host (or ``urls``) into tmp_path."""
    host.files["a.bin"] = CONTENT

    def get(*, checksum: Checksum | None = MD5, urls: tuple[str, ...] = (), size: int = 0, **options: Any) -> Path:
        file = RemoteFile("a.bin", urls or (host.url("a.bin"),), checksum, size)
        return fetch(file, tmp_path / "a.bin", RunLog(Console(file=said)), **{"patience": QUICK, **options})

    return get


def fails(get, tmp_path: Path, **options: Any) -> str:
    """The message with which fetching fails; nothing is there under the final name."""
    with pytest.raises(DataError) as caught:
        get(**options)
    assert not (tmp_path / "a.bin").exists()
    assert "--from" in str(caught.value.hint)
    return str(caught.value)


def is_complete(tmp_path: Path) -> bool:
    """Whether the file is right, and nothing else is left."""
    return (tmp_path / "a.bin").read_bytes() == CONTENT and [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_file_comes_whole_and_only_once(get, host, said, tmp_path):
    assert get() == tmp_path / "a.bin"
    assert is_complete(tmp_path)
    assert "a.bin: 1.0 MB from 127.0.0.1" in said.getvalue()
    get()
    assert host.ranges == [None]


def test_a_file_with_another_checksum_is_fetched_again(get, host, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")
    get()
    assert is_complete(tmp_path)


def test_cut_connections_go_on_where_they_stopped(get, host, tmp_path):
    host.answers = [cut(100_000), cut(200_000), cut(0), cut(300_000)]
    get()
    assert is_complete(tmp_path)
    assert host.ranges == [None, "bytes=100000-", "bytes=300000-", "bytes=300000-", "bytes=600000-"]
    assert host.requests[1][1]["If-Range"] == '"1"'


def test_more_cuts_than_tries_are_no_failure_while_bytes_come(get, host, tmp_path):
    host.answers = [cut(50_000)] * 15
    get()
    assert is_complete(tmp_path)
    assert len(host.requests) == 16


def test_a_second_start_goes_on(get, host, said, tmp_path):
    host.answers = [cut(400_000), *[cut(0)] * 4]
    message = fails(get, tmp_path)
    assert "the connection ended after 400.0 kB of 1.0 MB (4 tries)" in message
    assert "it goes on where it stopped" in message
    assert (tmp_path / "a.bin.part").stat().st_size == 400_000
    get()
    assert host.ranges[-1] == "bytes=400000-"
    assert "a.bin: 400.0 kB are there already" in said.getvalue()
    assert is_complete(tmp_path)


def test_a_complete_piece_needs_no_host(get, host, tmp_path):
    """The program was killed between the last byte and the renaming."""
    host.answers = [cut(1000), *[cut(0)] * 4]
    fails(get, tmp_path)
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    asked = len(host.requests)
    get()
    assert is_complete(tmp_path)
    assert len(host.requests) == asked


def test_hosts_that_ignore_ranges_start_over(get, host, said, tmp_path):
    host.answers = [cut(500_000), no_ranges(600_000), no_ranges()]
    get()
    assert is_complete(tmp_path)
    assert "starting over" in said.getvalue()


def test_a_host_that_ignores_ranges_and_always_breaks_is_given_up(get, host, tmp_path):
    host.answers = [no_ranges(500_000)] * 30
    fails(get, tmp_path)
    assert len(host.requests) == QUICK.tries


@pytest.mark.parametrize("answer", [good, ignoring_if_range])
@pytest.mark.parametrize("headers", [{"ETag": '"2"'}, {"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}])
def test_a_changed_file_is_not_glued_to_the_old_one(get, host, tmp_path, answer, headers):
    old = bytes(len(CONTENT))
    host.headers = {name: value for name, value in host.headers.items() if name in headers}
    host.files["a.bin"] = old
    host.answers = [cut(500_000), *[cut(0)] * 4]
    fails(get, tmp_path, checksum=None)
    host.files["a.bin"] = CONTENT
    host.headers = headers
    host.answers = [answer, answer]
    get(checksum=None)
    assert is_complete(tmp_path)


def test_a_file_that_has_become_shorter_is_fetched_anew(get, host, tmp_path):
    host.files["a.bin"] = CONTENT * 2
    host.answers = [cut(len(CONTENT) + 5), *[cut(0)] * 4]
    fails(get, tmp_path)
    host.files["a.bin"] = CONTENT
    get()
    assert is_complete(tmp_path)


def test_without_anything_to_tell_versions_apart_nothing_is_glued(get, host, tmp_path):
    host.headers = {}
    host.answers = [cut(500_000)]
    get(checksum=None)
    assert host.ranges == [None, None]
    assert is_complete(tmp_path)


def test_length_and_checksum_are_enough_to_go_on(get, host, tmp_path):
    host.headers = {}
    host.answers = [cut(500_000)]
    get()
    assert host.ranges == [None, "bytes=500000-"]
    assert is_complete(tmp_path)


def test_weak_tags_promise_nothing(get, host, tmp_path):
    host.headers = {"ETag": 'W/"1"'}
    host.answers = [cut(500_000)]
    get(checksum=None)
    assert host.ranges == [None, None]
    assert is_complete(tmp_path)


def test_a_piece_that_was_not_asked_for_is_not_used(get, host, tmp_path):
    host.answers = [other_piece, cut(1000), other_piece, good]
    get()
    assert is_complete(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{}",
        '{"url": 1}',
        "[1]",
        '{"url": "URL", "total": "x", "etag": null, "modified": null}',
        '{"url": "URL", "total": null, "etag": "a\\r\\nb", "modified": null}',
        '{"url": "URL", "total": null, "etag": 3, "modified": null}',
        "[" * 50_000,
        '{"url": "URL", "total": ' + "9" * 5000 + "}",
    ],
)
def test_a_broken_record_of_a_piece_starts_over(get, host, tmp_path, record):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "a.bin.part.json").write_text(record.replace("URL", host.url("a.bin")))
    get()
    assert is_complete(tmp_path)


def test_wrong_bytes_are_kept_aside_and_named(get, host, tmp_path):
    host.files["a.bin"] = CONTENT[:-1] + b"x"
    message = fails(get, tmp_path)
    assert f"instead of {MD5.digest}. Kept as {tmp_path / 'a.bin.bad'}" in message
    assert "--accept-checksum takes a.bin.bad" in message
    assert (tmp_path / "a.bin.bad").read_bytes() == host.files["a.bin"]
    assert not (tmp_path / "a.bin.part").exists()

    asked = len(host.requests)
    get(accept_checksum=True)
    assert (tmp_path / "a.bin").read_bytes() == host.files["a.bin"]
    assert len(host.requests) == asked


def test_wrong_bytes_can_be_accepted_at_once(get, host, said, tmp_path):
    host.files["a.bin"] = b"other"
    get(accept_checksum=True)
    assert (tmp_path / "a.bin").read_bytes() == b"other"
    assert f"instead of {MD5.digest}; accepted" in said.getvalue()


def test_wrong_bytes_of_one_host_send_to_the_next(get, host, tmp_path):
    host.files["bad/a.bin"] = b"other"
    get(urls=(host.url("bad/a.bin"), host.url("a.bin")))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert (tmp_path / "a.bin.bad").read_bytes() == b"other"


def test_a_length_that_is_too_short_is_never_a_file(get, host, tmp_path):
    host.answers = [announced(len(CONTENT) - 1)] * 30
    assert f"instead of {MD5.digest}" in fails(get, tmp_path)


def test_a_length_that_is_too_long_is_never_a_file(get, host, tmp_path):
    host.answers = [announced(len(CONTENT) + 1, ranges=False)] * 30
    assert "the connection ended after" in fails(get, tmp_path)


def test_a_length_that_was_too_long_once_does_no_harm(get, host, tmp_path):
    """Asked for the rest, the host says that there is none (416)."""
    host.answers = [announced(len(CONTENT) + 1)]
    get()
    assert is_complete(tmp_path)


def test_a_host_without_lengths(get, host, tmp_path):
    host.answers = [without_length]
    get()
    assert is_complete(tmp_path)


def test_chunks(get, host, tmp_path):
    host.answers = [chunked(300_000), chunked()]
    get()
    assert is_complete(tmp_path)


def test_a_404_sends_to_the_next_host(get, host, said, tmp_path):
    get(urls=(host.url("gone/a.bin"), host.url("a.bin")))
    assert is_complete(tmp_path)
    assert "404 Not Found; trying 127.0.0.1" in said.getvalue()
    assert len(host.requests) == 2


def test_all_hosts_are_named_when_all_fail(get, host, tmp_path):
    message = fails(get, tmp_path, urls=(host.url("gone"), "http://127.0.0.1:9/a.bin"))
    assert "404 Not Found" in message
    assert "127.0.0.1:9: no connection (Connection refused) (2 tries)" in message


def test_the_host_of_the_first_piece_is_asked_first(get, host, tmp_path):
    urls = (host.url("other/a.bin"), host.url("a.bin"))
    host.answers = [good, cut(500_000), *[cut(0)] * 4]
    fails(get, tmp_path, urls=urls)
    host.files["other/a.bin"] = CONTENT
    get(urls=urls)
    assert host.requests[-1][0] == "a.bin"
    assert host.ranges[-1] == "bytes=500000-"
    assert is_complete(tmp_path)


def test_pieces_of_two_hosts_are_not_glued(get, host, tmp_path):
    """Even if both call their version the same."""
    host.files["first/a.bin"] = bytes(len(CONTENT))
    host.answers = [cut(500_000), status(404)]
    get(urls=(host.url("first/a.bin"), host.url("a.bin")), checksum=None)
    assert [name for name, _ in host.requests] == ["first/a.bin", "first/a.bin", "a.bin"]
    assert host.ranges[-1] is None
    assert is_complete(tmp_path)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_errors_are_tried_again(get, host, tmp_path, code):
    host.answers = [status(code), status(code)]
    get()
    assert is_complete(tmp_path)


@pytest.mark.parametrize("code", [400, 401, 403, 410, 501])
def test_other_errors_are_not(get, host, tmp_path, code):
    host.answers = [status(code)] * 5
    assert f": {code} " in fails(get, tmp_path)
    assert len(host.requests) == 1


def test_errors_without_end_are_given_up(get, host, tmp_path):
    host.answers = [status(500)] * 20
    assert "500 Internal Server Error (4 tries)" in fails(get, tmp_path)
    assert len(host.requests) == 4


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_honoured(get, host, tmp_path, date):
    # A date has whole seconds, so up to one of the two is lost.
    host.answers = [status(503, Retry_After=email.utils.formatdate(time.time() + 2, usegmt=True) if date else "1")]
    started = time.monotonic()
    get()
    assert time.monotonic() - started > 0.9
    assert is_complete(tmp_path)


def test_a_host_that_asks_for_too_much_patience_is_given_up(get, host, tmp_path):
    host.answers = [status(429, Retry_After="3600")] * 9
    assert "it asks to wait 3600 s" in fails(get, tmp_path)
    assert len(host.requests) == 1


def test_silence_is_a_cut(get, host, said, tmp_path):
    host.answers = [hang(100_000), hang(100_000)]
    get()
    assert is_complete(tmp_path)
    assert host.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert "silent for 0.3 s" in said.getvalue()


def test_a_host_that_never_speaks_is_given_up_early(get, host, tmp_path):
    host.answers = [hang(0)] * 9
    assert "silent for 0.3 s (2 tries)" in fails(get, tmp_path)


def test_a_web_page_is_not_the_file(get, host, tmp_path):
    host.answers = [web_page]
    assert "answered with a web page instead of the file" in fails(get, tmp_path, checksum=None)


def test_a_file_that_fails_the_check_is_kept_aside(get, tmp_path):
    def check(path: Path) -> None:
        raise DataError(f"{path.name} is rotten.")

    message = fails(get, tmp_path, check=check, checksum=None)
    assert f"a.bin.part is rotten. Kept as {tmp_path / 'a.bin.bad'}" in message
    assert "--accept-checksum" not in message


def test_room_is_looked_for_before_the_first_byte(get, host, monkeypatch, tmp_path):
    monkeypatch.setattr("plopcli.files.disk.free_bytes", lambda _: 1_500_000)
    with pytest.raises(MachineError, match=r"1\.6 MB are needed \(for a\.bin\), 1\.5 MB are free") as caught:
        get(room=600_000)
    assert str(caught.value.hint).startswith("Free 124.0 kB there")
    assert list(tmp_path.iterdir()) == []
    get(room=400_000)


def test_only_the_rest_needs_room(get, host, monkeypatch, tmp_path):
    host.answers = [cut(1_000_000), *[cut(0)] * 4]
    fails(get, tmp_path)
    monkeypatch.setattr("plopcli.files.disk.free_bytes", lambda _: 24_000)
    get()


def test_ctrl_c_leaves_the_piece_and_says_so(get, host, said, monkeypatch, tmp_path):
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    host.answers = [cut(400_000)]
    with monkeypatch.context() as patched:
        patched.setattr(http.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get()
    assert "Stopped; 400.0 kB of a.bin are kept. The same command goes on there." in said.getvalue()
    get()
    assert host.ranges[-1] == "bytes=400000-"


def test_the_record_says_what_the_piece_is(get, host, tmp_path):
    host.answers = [cut(400_000), *[cut(0)] * 4]
    fails(get, tmp_path)
    record = json.loads((tmp_path / "a.bin.part.json").read_text())
    assert record == {
        "url": host.url("a.bin"),
        "total": len(CONTENT),
        "etag": '"1"',
        "modified": host.headers["Last-Modified"],
    }


def test_lines_tell_about_progress_where_there_is_no_terminal(get, said, monkeypatch):
    monkeypatch.setattr("plopcli.data.byte_progress.LINE_EVERY", 0.0)
    get()
    assert said.getvalue().startswith("a.bin: 1.0 MB\na.bin: ")
    assert "% of 1.0 MB, " in said.getvalue()


@pytest.mark.parametrize("length", [None, "-1", "9" * 5000, "1e9", "\u00b2"])
def test_a_file_without_a_length_does_not_grow_for_ever(get, host, monkeypatch, tmp_path, length):
    monkeypatch.setattr(http, "_SLACK", 4_000_000)
    host.answers = [endless(length)]
    assert "sends more than 4.0 MB, which a.bin cannot have" in fails(get, tmp_path, size=1000)
    assert list(tmp_path.iterdir()) == []


def test_a_file_far_beyond_its_size_is_not_begun(get, host, tmp_path):
    host.answers = [announced(1 << 40)]
    assert "cannot have" in fails(get, tmp_path, size=len(CONTENT))
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_drips_is_given_up(get, host, tmp_path):
    host.answers = [dripping] * 30
    assert "less than 1.0 kB in 0.3 s (4 tries)" in fails(get, tmp_path)


def test_a_host_whose_answer_never_begins_is_given_up(get, host, tmp_path):
    host.answers = [never_beginning] * 30
    assert "(4 tries)" in fails(get, tmp_path)


def test_redirects_are_followed_but_not_for_ever(get, host, tmp_path):
    host.answers = [status(302, Location=host.url("a.bin"))]
    get()
    assert is_complete(tmp_path)
    (tmp_path / "a.bin").unlink()
    host.answers = [status(302, Location=host.url("a.bin"))] * 50
    assert "too many redirects" in fails(get, tmp_path)
    assert len(host.requests) < 20
    host.answers = [status(302, Location="file:///etc/passwd")]
    fails(get, tmp_path)


@pytest.mark.parametrize("wait", ["soon", "-3", "9" * 5000, "Mon, 99 Foo 99999999 99:99:99 GMT"])
def test_nonsense_in_retry_after_ends_too(get, host, tmp_path, wait):
    host.answers = [status(503, Retry_After=wait)]
    get()
    assert is_complete(tmp_path)


def test_hosts_do_not_steer_the_terminal(get, host, said, tmp_path):
    def answer(handler: Handler, _: bytes) -> None:
        handler.send_response(404, "No\x1b[2Jpe")
        handler.end_headers()

    host.answers = [answer]
    assert "404 No?[2Jpe" in fails(get, tmp_path)
    assert "\x1b" not in said.getvalue()


def test_the_proxy_of_the_environment_is_used(get, host, monkeypatch, tmp_path):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", host.address.replace("//", "//me:secret@"))
    host.files["http://example.org/a.bin"] = CONTENT
    get(urls=("http://example.org/a.bin",))
    assert is_complete(tmp_path)
    assert host.requests[0][1]["proxy-authorization"].startswith("Basic ")


@pytest.mark.parametrize("name", ["a.bin.part", "a.bin.part.json"])
def test_nothing_is_written_through_links(get, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / name).symlink_to(outside)
    get()
    assert outside.read_text() == "mine"
    outside.unlink()
    assert is_complete(tmp_path)


def test_a_named_pipe_in_the_way_is_no_piece(get, tmp_path):
    for name in ("a.bin", "a.bin.part", "a.bin.part.json"):
        os.mkfifo(tmp_path / name)
    get()
    assert is_complete(tmp_path)
