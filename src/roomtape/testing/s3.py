"""A real S3 server for tests, versitygw on a folder: it checks signatures, digests and conditions, which the usual mocks do not."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlencode

from roomtape.testing.servers import binary, free_port, listens, require

INSTALL = "versitygw is not installed: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0, or name it in ROOMTAPE_VERSITYGW"


class Credentials(TypedDict):
    """Keyword arguments of storage.store.open_store."""

    access_key_id: str
    secret_access_key: str


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server; `objects` is the folder it keeps its buckets in."""

    port: int
    objects: Path
    access_key_id: str = "roomtape-test-key"
    secret_access_key: str = "roomtape-test-secret"  # noqa: S105 - of a server that lives for one test

    def make_bucket(self, name: str = "bucket") -> Path:
        """A new bucket; returns the folder of its objects."""
        folder = self.objects / name
        folder.mkdir()
        return folder

    def url(self, bucket: str = "bucket", prefix: str = "", *, port: int | None = None) -> str:
        """The storage URL of a bucket; `port`: by way of a proxy."""
        options = {"endpoint": f"http://127.0.0.1:{port or self.port}", "path_style": "true", "allow_http": "true"}
        return f"s3://{bucket}/{prefix}?{urlencode(options)}"

    @property
    def credentials(self) -> Credentials:
        """The keyword arguments of storage.store.open_store."""
        return Credentials(access_key_id=self.access_key_id, secret_access_key=self.secret_access_key)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Starts versitygw below `folder`, ends it afterwards; the test is skipped where there is none."""
    program = require(binary("versitygw", "ROOMTAPE_VERSITYGW"), INSTALL)
    objects = folder / "objects"
    objects.mkdir(parents=True)
    server = S3Server(free_port(), objects)
    environment = {"PATH": os.environ["PATH"], "ROOT_ACCESS_KEY": server.access_key_id, "ROOT_SECRET_KEY": server.secret_access_key}
    command: list[str | Path] = [program, "--quiet", "--port", f"127.0.0.1:{server.port}", "posix", objects]
    with (folder / "versitygw.log").open("wb") as log, subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log) as process:  # noqa: S603 - our own line
        try:
            if not listens(server.port):
                raise RuntimeError(f"versitygw did not start: {(folder / 'versitygw.log').read_text()}")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
