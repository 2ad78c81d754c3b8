"""From a storage URL to a Store, with a sentence for each way in which it cannot be one."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from secrets import token_bytes, token_hex
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from roomtape.core.errors import BadInput, Refused, RoomtapeError, Unavailable
from roomtape.core.ports import Store
from roomtape.storage import key as keys
from roomtape.storage.local import LocalStore
from roomtape.storage.s3 import Bucket, S3Store

_OPTIONS = {"endpoint", "region", "path_style", "allow_http"}
_YES, _NO = {"true", "1", "yes"}, {"false", "0", "no", ""}
_PROBE_BYTES = 4096


def open_store(
    url: str,
    *,
    access_key_id: str = "",
    secret_access_key: str = "",
    session_token: str = "",
    endpoint: str = "",
    region: str = "",
    scratch: Path | None = None,
) -> Store:
    """The Store of `file:///folder` or `s3://bucket/prefix?endpoint=…&region=…&path_style=true&allow_http=true`.

    `endpoint` and `region` stand in for those that the URL does not name; `scratch` is a folder for large streams on their way to a bucket. A local folder is made; a bucket is not asked before `check`.
    Refused with a sentence for what cannot work.
    """
    parsed = _split(url)
    if parsed.scheme == "file":
        return open_folder(url)
    if parsed.scheme != "s3":
        raise Refused(f"The storage URL begins with {parsed.scheme or url[:20]!r}; it must be file:///folder or s3://bucket/prefix.", code="storage_url")
    if parsed.username or parsed.password:
        raise Refused("The storage URL has credentials in it; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.", code="storage_url")
    options = dict(parse_qsl(parsed.query, keep_blank_values=True))
    if unknown := options.keys() - _OPTIONS:
        raise Refused(f"The storage URL has the unknown option {min(unknown)!r}; known are {', '.join(sorted(_OPTIONS))}.", code="storage_url")
    if not parsed.netloc:
        raise Refused("The storage URL names no bucket: s3://bucket/prefix.", code="storage_url")
    if bool(access_key_id) != bool(secret_access_key):
        raise Refused("Of the access key and its secret only one is set; set both, or none where the machine has a role.", code="storage_auth")
    prefix = parsed.path.strip("/")
    try:
        keys.folder_parts(prefix)
    except BadInput as exc:
        raise Refused(f"The prefix {prefix!r} in the storage URL cannot be part of a key.", code="storage_url") from exc
    allow_http = _switch(options, "allow_http")
    return S3Store(
        Bucket(
            parsed.netloc,
            prefix,
            _endpoint(options.get("endpoint") or endpoint, allow_http=allow_http),
            options.get("region") or region or "us-east-1",
            _switch(options, "path_style"),
            allow_http,
            access_key_id,
            secret_access_key,
            session_token,
        ),
        scratch=scratch,
    )


def open_folder(url: str) -> LocalStore:
    """The LocalStore of a `file:///folder` URL; the spool is one too."""
    parsed = _split(url)
    folder = Path(unquote(parsed.path))
    if parsed.scheme != "file" or parsed.netloc or not folder.is_absolute() or folder == Path("/"):
        raise Refused(f"{url!r} names no folder: file:///absolute/path.", code="storage_url")
    try:
        return LocalStore(folder)
    except OSError as exc:
        raise Refused(f"The storage folder {folder} cannot be written: {exc.strerror}.", code="storage_unwritable") from exc


async def check(store: Store) -> None:
    """Writes, looks at, reads, reads a part of, and deletes a probe object.

    Refused with a sentence for a missing bucket, wrong credentials or a store that gives back other bytes; Unavailable where it is only away.
    """
    key, body = f"roomtape-probe/{token_hex(16)}", token_bytes(_PROBE_BYTES)
    try:
        await store.put(key, _whole(body), size=len(body), sha256=hashlib.sha256(body).hexdigest())
        seen = (await store.head(key)).size, await _all(store, key), await _all(store, key, 1000, 1010)
    except Unavailable as exc:
        if exc.code in {"storage_missing", "storage_auth"}:
            raise Refused(exc.message, code=exc.code) from exc
        raise
    finally:
        with suppress(RoomtapeError):
            await store.delete(key)
    if seen != (len(body), body, body[1000:1010]):
        raise Refused("The store gives back other bytes than it was given.", code="storage_differs")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as exc:
        raise Refused(f"The storage URL {url[:80]!r} is no URL.", code="storage_url") from exc


async def _all(store: Store, key: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([piece async for piece in store.read(key, start, stop)])


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _switch(options: dict[str, str], name: str) -> bool:
    value = options.get(name, "").lower()
    if value not in _YES | _NO:
        raise Refused(f"The option {name} in the storage URL must be true or false, not {value!r}.", code="storage_url")
    return value in _YES


def _endpoint(endpoint: str, *, allow_http: bool) -> str:
    """The endpoint as obstore takes it; it panics where this is no URL."""
    if not endpoint:
        return ""
    try:
        parsed = urlsplit(endpoint)
        sound = parsed.scheme in {"http", "https"} and parsed.hostname and parsed.port != 0 and not parsed.query and not parsed.fragment
    except ValueError:
        sound = False
    if not sound or any(char.isspace() for char in endpoint):
        raise Refused(f"The endpoint {endpoint!r} of the storage URL is no http(s)://host:port.", code="storage_endpoint")
    if parsed.scheme == "http" and not allow_http:
        raise Refused(f"The endpoint {endpoint!r} is not encrypted; use https, or add allow_http=true to the storage URL.", code="storage_endpoint")
    return endpoint.rstrip("/")
