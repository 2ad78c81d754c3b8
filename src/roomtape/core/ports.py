"""What the floors above expect of stores: small protocols, so that no adapter knows another."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the store has it."""

    key: str
    size: int


class Store(Protocol):
    """Where bytes lie. Keys are relative, `/`-separated and built by core.keys; others are refused with BadInput.

    Errors: NotFound (no such object), StorageFull, Unavailable (away, time-out), Conflict (create-only and it is there).
    """

    async def put(self, key: str, body: AsyncIterable[bytes], *, size: int, sha256: str) -> None:
        """Stores the body durably; afterwards the object is whole, or absent. The same key again with the same bytes is fine.

        Size and digest (hex) are checked on the way; a body that differs raises BadInput and leaves nothing.
        """

    async def adopt(self, key: str, path: Path, *, size: int, sha256: str) -> None:
        """Stores a local file that is whole and fsynced; a local store takes it by rename, `path` is gone afterwards in every case of success."""

    def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """The bytes start ≤ n < stop, in pieces of ≤ 1 MiB."""

    async def head(self, key: str) -> Stored:
        """Size of an object, or NotFound."""

    async def delete(self, key: str) -> None:
        """Removes an object; one that is not there is fine."""

    def list(self, prefix: str) -> AsyncIterator[Stored]:
        """All objects below a prefix, in any order."""

    def path(self, key: str) -> Path | None:
        """Where a local store keeps the object, for sendfile; None for remote stores."""

    async def presign(self, key: str, *, ttl_s: int, disposition: str = "") -> str | None:
        """A URL that gives the object to whoever holds it; None where the store has none."""

    async def close(self) -> None:
        """Gives connections back."""
