"""The disk that takes uploads, and what troubles it now."""

import os
from pathlib import Path

from roomtape.core.errors import RoomtapeError, StorageFull, Unavailable
from roomtape.storage.failover import SpooledStore
from roomtape.storage.folder import told


class Disk:
    """The disk that takes uploads, in `folder`; asked each time, for nobody says when it fills up or goes away."""

    def __init__(self, store: SpooledStore, folder: Path, reserve_bytes: int) -> None:
        self.folder = folder
        self._store, self._reserve_bytes = store, reserve_bytes
        self._opened = folder.stat()

    def trouble(self) -> RoomtapeError | None:
        """Does what an upload does first; the error with which one would be refused now. Blocks."""
        try:
            self._probe()
        except RoomtapeError as wrong:
            return wrong
        return None

    def _probe(self) -> None:
        free = self._store.free_bytes()
        if free < self._reserve_bytes:
            raise StorageFull(
                f"Uploads are refused: {self.folder} has {free} bytes free, ROOMTAPE_RESERVE_BYTES keeps {self._reserve_bytes}. Make room there, or lower it.",
                free_bytes=free,
            )
        with told("looking whether it is there"):
            if not os.path.samestat(self.folder.stat(), self._opened):  # moved away, or another disk was mounted over it
                raise Unavailable(f"{self.folder} is not the folder that was opened: put that back, or start again.", code="storage_error")
            with self._store.intake.begin() as upload:
                upload.write()
