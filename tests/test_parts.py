"""`serve`, `work` and `record` alone: with --json each says in one document that it does its work."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from roomtape import app
from roomtape.settings import Settings
from roomtape.storage.s3 import S3Store
from roomtape.testing.postgres import fresh_database
from roomtape.testing.servers import free_port


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ROOMTAPE_")}
    folder = tmp_path_factory.mktemp("parts")
    with fresh_database() as url:
        yield plain | {"ROOMTAPE_DATABASE_URL": url, "ROOMTAPE_STORAGE_URL": (folder / "store").as_uri(), "ROOMTAPE_DATA": str(folder / "data")}


@pytest.mark.parametrize("part", ["serve", "work", "record"])
def test_a_part_says_in_one_document_that_it_is_ready(environment: dict[str, str], tmp_path: Path, part: str) -> None:
    port = free_port()
    more = ["--port", str(port)] if part == "serve" else []
    command = [sys.executable, "-m", "roomtape", part, "--json", *more]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as child:
        try:
            assert child.stdout is not None
            said = json.loads(child.stdout.readline())
            assert said == ({"ready": True, "url": f"http://127.0.0.1:{port}"} if part == "serve" else {"ready": True})
            if part == "serve":
                assert httpx2.get(f"{said['url']}/readyz", trust_env=False, timeout=20).status_code == 200
        finally:
            child.send_signal(signal.SIGTERM)
        assert child.stdout.read() == ""
        assert child.wait(30) == 0, (tmp_path / "log").read_text()


def test_large_bodies_on_their_way_to_a_bucket_wait_in_the_data_folder(tmp_path: Path) -> None:
    store = app._store(Settings(storage_url="s3://bucket?endpoint=https://s3.test", data=tmp_path))
    assert isinstance(store.primary, S3Store)
    assert store.primary._scratch == tmp_path / "work"
    assert (tmp_path / "work").is_dir()
