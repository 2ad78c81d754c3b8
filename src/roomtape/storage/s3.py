"""Objects in an S3 bucket, AWS's or any other's, through obstore: signatures, multipart and connections are its business, what an answer means is ours."""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store as Remote

from roomtape.core.errors import BadInput, Conflict, NotFound, StorageFull, Unavailable
from roomtape.core.ports import Stored
from roomtape.storage import key as keys
from roomtape.storage.folder import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import S3Config, S3Credential

PIECE_BYTES = 1024 * 1024
PART_BYTES = 8 * 1024 * 1024  # up to here an object is one request that creates or fails; beyond, it goes in parts of this size
WINDOW_BYTES = 4 * 1024 * 1024  # read whole before it is handed on, so that a slow reader holds no connection
MOST_PARTS = 9000  # S3 takes 10,000
CONNECT_S = 5
REQUEST_S = 60
RETRY_S = 10  # afterwards it is Unavailable; who called has a spool or a queue
SLOWEST_BYTES_PER_S = 320 * 1024  # of a window of 4 MiB: 13 s, so that no request waits 30 s
DIGEST = "sha256"  # x-amz-meta-sha256: what an object's bytes must hash to, for those who find the key taken

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where the objects are. Empty credentials: obstore looks where AWS's tools look (instance profile, web identity, ECS)."""

    name: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    path_style: bool = False
    allow_http: bool = False
    access_key_id: str = ""
    secret_access_key: str = ""
    session_token: str = ""

    def __repr__(self) -> str:
        return f"Bucket({self.name!r}, prefix={self.prefix!r}, endpoint={self.endpoint!r}, region={self.region!r}, …)"


class S3Store:
    """A Store in a bucket.

    Integrity: every request carries the sha256 of its body, signed and as a checksum, so that a store refuses what was changed on the way;
    the digest of the whole is computed here before anything is sent, and kept beside the object. Nothing that is wrong is ever begun, so
    parts are left behind only by a network that breaks in the middle: give the bucket a rule that aborts incomplete multipart uploads.
    """

    def __init__(self, bucket: Bucket, *, scratch: Path | None = None, retry_s: float = RETRY_S) -> None:
        """`scratch`: a folder for streams over 8 MiB, which wait there until they are known to be whole. `retry_s`: how long a failing call is retried."""
        self.bucket = bucket
        self._scratch = scratch
        self._retry_s = retry_s
        self._remote = _remote(bucket, retry_s)

    async def put(self, key: str, body: AsyncIterable[bytes], *, size: int, sha256: str) -> None:
        """Stores a stream; see Store. Nothing is sent before it is known to be what was announced."""
        keys.parts(key)
        digest, taken = hashlib.sha256(), 0
        with _waiting(size, self._scratch) as file:
            async for piece in body:
                taken += len(piece)
                if taken > size:
                    break
                await asyncio.to_thread(_absorb, piece, digest, file)
            if taken != size or digest.hexdigest() != sha256:
                raise BadInput("The body is not the one that was announced: size or sha256 differ.", code="digest_mismatch")
            file.seek(0)
            await self._send(key, file, size, sha256)

    async def adopt(self, key: str, path: Path, *, size: int, sha256: str) -> None:
        """Sends a file, if its bytes are still those that were announced, and removes it."""
        keys.parts(key)
        with told("reading a file"):
            file = await asyncio.to_thread(path.open, "rb")
        with file:
            digest = await asyncio.to_thread(hashlib.file_digest, file, "sha256")
            if file.tell() != size or digest.hexdigest() != sha256:
                raise BadInput("The file is not the one that was announced: size or sha256 differ.", code="digest_mismatch")
            file.seek(0)
            await self._send(key, file, size, sha256)
        await asyncio.to_thread(path.unlink, missing_ok=True)

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """The bytes start ≤ n < stop, or to the end; NotFound comes with the first piece."""
        keys.parts(key)
        while stop is None or start < stop:
            end = start + WINDOW_BYTES if stop is None else min(start + WINDOW_BYTES, stop)
            with _meant("reading"):
                async with self._in_time(end - start):
                    window, size = await self._window(key, start, end)
            for at in range(0, len(window), PIECE_BYTES):
                yield window[at : at + PIECE_BYTES]
            start += len(window)
            if start >= size or not window:
                return

    async def head(self, key: str) -> Stored:
        """Size of an object, or NotFound."""
        size, _ = await self._look(key)
        return Stored(key, size)

    async def delete(self, key: str) -> None:
        """Removes an object; one that is not there is fine."""
        keys.parts(key)
        with _meant("deleting"):
            try:
                async with self._in_time():
                    await obstore.delete_async(self._remote, key)
            except FileNotFoundError:
                return

    async def list(self, prefix: str) -> AsyncIterator[Stored]:
        """All objects below the folder `prefix`."""
        below = "/".join(keys.folder_parts(prefix))
        with _meant("listing"):
            pages = obstore.list(self._remote, below or None)
            while True:
                try:
                    async with self._in_time():
                        page = await anext(pages)
                except StopAsyncIteration:
                    return
                for found in page:
                    yield Stored(found["path"], found["size"])

    def path(self, key: str) -> None:
        """A bucket has no path."""

    async def presign(self, key: str, *, ttl_s: int, disposition: str = "") -> str | None:
        """A URL for GET (with or without Range) that lives `ttl_s` seconds, or as long as the credentials if they die before.

        None where a disposition is asked for: obstore signs no response headers, so such a download passes through us.
        """
        keys.parts(key)
        if disposition:
            return None
        with _meant("signing"):
            return await obstore.sign_async(self._remote, "GET", key, timedelta(seconds=ttl_s))

    async def close(self) -> None:
        """Connections go with the object."""

    def _in_time(self, size: int = 0) -> asyncio.Timeout:
        """How long a call may take with all its retries."""
        return asyncio.timeout(CONNECT_S + self._retry_s + size / SLOWEST_BYTES_PER_S)

    async def _send(self, key: str, file: BinaryIO, size: int, sha256: str) -> None:
        """Sends, then asks what the store has: the ack stands on that answer."""
        try:
            async with self._in_time(size):
                if size <= PART_BYTES:
                    with _meant("writing", writes=True):
                        body = await asyncio.to_thread(file.read)
                        await obstore.put_async(self._remote, key, body, mode="create", attributes={DIGEST: sha256})
                elif not await self._is_there(key):
                    with _meant("writing", writes=True):
                        part = max(PART_BYTES, -(-size // MOST_PARTS))
                        await obstore.put_async(self._remote, key, file, attributes={DIGEST: sha256}, chunk_size=part, max_concurrency=4)
        except AlreadyExistsError:
            pass  # sent before, and the answer was lost; or others' bytes: the look tells
        except TimeoutError as exc:
            raise Unavailable("The object store did not answer in time.", code="storage_timeout") from exc
        await self._confirm(key, size, sha256)

    async def _confirm(self, key: str, size: int, sha256: str) -> None:
        try:
            kept, digest = await self._look(key)
        except NotFound as exc:
            raise Unavailable("The object store took an object and does not have it.", code="storage_error") from exc
        if digest is None and kept == size:
            digest = await self._digest(key)
        if (kept, digest) != (size, sha256):
            raise Conflict("The store has other bytes under this key.", code="object_differs")

    async def _digest(self, key: str) -> str:
        """What an object that somebody else has put there hashes to."""
        digest = hashlib.sha256()
        async for piece in self.read(key):
            digest.update(piece)
        return digest.hexdigest()

    async def _is_there(self, key: str) -> bool:
        try:
            await self._look(key)
        except NotFound:
            return False
        return True

    async def _look(self, key: str) -> tuple[int, str | None]:
        """(size, sha256 as noted by us) of an object."""
        keys.parts(key)
        with _meant("looking"):
            async with self._in_time():
                found = await obstore.get_async(self._remote, key, options={"head": True})
        return found.meta["size"], found.attributes.get(DIGEST)

    async def _window(self, key: str, start: int, stop: int) -> tuple[bytes, int]:
        """(bytes, size of the object); no bytes where the object ends before `start`."""
        try:
            found = await obstore.get_async(self._remote, key, options={"range": (start, stop)})
            return bytes(await found.bytes_async()), found.meta["size"]
        except BaseError as exc:
            if _status(exc) == 416:
                return b"", 0
            raise


@contextmanager
def _meant(doing: str, *, writes: bool = False) -> Iterator[None]:
    """Turns obstore's errors into ours; of a status only its text tells."""
    try:
        yield
    except TimeoutError as exc:
        raise Unavailable("The object store did not answer in time.", code="storage_timeout") from exc
    except FileNotFoundError as exc:
        if writes or "NoSuchBucket" in str(exc):
            raise Unavailable("The bucket does not exist.", code="storage_missing") from exc
        raise NotFound from exc
    except AlreadyExistsError:
        raise
    except BaseError as exc:
        code = _CODE.search(str(exc))
        if _status(exc) == 507 or (code and code[1] in _FULL):
            raise StorageFull from exc
        if isinstance(exc, PermissionDeniedError | UnauthenticatedError):
            raise Unavailable(
                "The object store refuses our credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be right, and may read, write and delete.",
                code="storage_auth",
            ) from exc
        raise Unavailable(f"The object store failed while {doing}.", code="storage_error") from exc


def _status(exc: BaseError) -> int:
    found = _STATUS.search(str(exc))
    return int(found[1]) if found else 0


def _absorb(piece: bytes, digest: "hashlib._Hash", file: BinaryIO) -> None:
    digest.update(piece)
    file.write(piece)


def _waiting(size: int, scratch: Path | None) -> BinaryIO:
    return BytesIO() if size <= PART_BYTES else tempfile.TemporaryFile(dir=scratch)


def _remote(bucket: Bucket, retry_s: float) -> Remote:
    # Said in full: what is left out, obstore takes from AWS_* of the environment, signing and endpoint included.
    config: S3Config = {
        "region": bucket.region,
        "virtual_hosted_style_request": not bucket.path_style,
        "checksum_algorithm": "SHA256",
        "unsigned_payload": False,
        "skip_signature": False,
        "disable_bulk_delete": True,  # DELETE is understood everywhere, POST ?delete is not
    }
    if bucket.endpoint:
        config["endpoint"] = config["aws_endpoint_url_s3"] = bucket.endpoint
    return Remote(
        bucket.name,
        prefix=bucket.prefix or None,
        config=config,
        credential_provider=_given(bucket) if bucket.access_key_id else None,
        client_options={"allow_http": bucket.allow_http, "connect_timeout": timedelta(seconds=CONNECT_S), "timeout": timedelta(seconds=REQUEST_S)},
        retry_config={
            "max_retries": 8,
            "retry_timeout": timedelta(seconds=retry_s),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
        },
    )


def _given(bucket: Bucket) -> "Callable[[], S3Credential]":
    """Our credentials for obstore. As plain configuration they would be joined by a token from the environment, and an empty token would be sent."""

    def credentials() -> "S3Credential":
        return {"access_key_id": bucket.access_key_id, "secret_access_key": bucket.secret_access_key, "token": bucket.session_token or None, "expires_at": None}

    return credentials
