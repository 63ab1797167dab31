"""`autocl serve`: the live page over real HTTP, and who may read it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.journals import Written
from support.sweeps import crossed

from autocl_sweeper.errors import ConfigurationError, SweepFolderError
from autocl_sweeper.page import server as served
from autocl_sweeper.page.server import ReportServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def seen_at_once(monkeypatch, no_fsync):
    monkeypatch.setattr(served, "LOOK_S", 0.05)


@contextmanager
def serving(folder: Path, address: str = "127.0.0.1") -> Iterator[ReportServer]:
    with ReportServer(folder, (), address, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=300
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_page_is_live_and_its_news_have_what_happened_since(tmp_path):
    sweep = Written(tmp_path)
    sweep.start(0)
    with serving(tmp_path) as server:
        status, page = get(server.url)
        assert (
            status == 200
            and f'data-live="{server.size()}"' in page
            and "connect-src &#39;self&#39;" in page
        )
        assert json.loads(get(server.url + "data.json")[1])["data"]["trials"]["score"] == [None]
        sweep.finish(0, 0.75)
        news = json.loads(get(server.url + "data.json")[1])
        assert news["data"]["trials"]["score"] == [0.75] and "0.750" in news["main"]
        assert get(server.url + "else")[0] == 404
    sweep.journal.close()


def test_an_event_comes_when_the_journal_grows(tmp_path):
    sweep = Written(tmp_path)
    with (
        serving(tmp_path) as server,
        urllib.request.urlopen(server.url + "events", timeout=300) as stream,
    ):
        assert stream.headers["Content-Type"] == "text/event-stream"
        journal = tmp_path / "journal.jsonl"
        assert stream.readline() == f"data: {journal.stat().st_size}\n".encode()
        sweep.start(0)
        assert stream.readline() == b"\n"
        assert stream.readline() == f"data: {journal.stat().st_size}\n".encode()
    sweep.journal.close()


def test_a_page_of_another_site_cannot_read_it(tmp_path):
    Written(tmp_path).journal.close()
    with serving(tmp_path) as server:
        assert get(server.url, Host="evil.example:80")[0] == 403
        assert get(server.url, Host="localhost:80")[0] == 200


def test_another_address_takes_the_token_with_every_request(tmp_path):
    Written(tmp_path).journal.close()
    with serving(tmp_path, "0.0.0.0") as server:
        port = server.server_address[1]
        for path in ("", "data.json", "events", "?token=wrong"):
            assert get(f"http://127.0.0.1:{port}/{path}")[0] == 403
        assert len(server.token) >= 32 and server.url.endswith(f"?token={server.token}")
        assert get(f"http://127.0.0.1:{port}/?token={server.token}")[0] == 200


def test_a_port_in_use_and_a_folder_without_a_sweep_are_refused(tmp_path):
    with pytest.raises(SweepFolderError, match="holds no sweep"):
        ReportServer(tmp_path, (), "127.0.0.1", 0)
    Written(tmp_path).journal.close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port}.*\n.*--port"):
            ReportServer(tmp_path, (), "127.0.0.1", port)


def test_the_command_prints_its_url_and_ends_at_ctrl_c(tmp_path):
    folder = crossed(tmp_path / "s")
    command = [sys.executable, "-m", "autocl_sweeper", "serve", "--port", "0", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = re.match(
                r"(http://127\.0\.0\.1:\d+/)  \(Ctrl-C ends it\)", process.stdout.readline()
            )
            assert url and "forgets 0.150" in get(url[1])[1]
            process.send_signal(2)
            assert process.wait(timeout=300) == 0
        finally:
            process.kill()
