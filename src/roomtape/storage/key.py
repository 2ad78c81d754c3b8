"""Which keys a store takes. All others are refused here, before they can reach a file system or a request line."""

import re

from roomtape.core.errors import BadInput

MAX_KEY_BYTES = 900  # S3 ends at 1024 with the bucket's prefix before it
MAX_PARTS = 16  # ours have 7; each is an open folder while a file is kept

# What AWS calls safe, and what others' recorders put into names. No `%` and no `\`: someone down the road may decode or convert them.
_PART = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_.,:;=@+&$!'() -]{0,198}[A-Za-z0-9_.,:;=@+&$!'()-])?")


def parts(key: str) -> tuple[str, ...]:
    """The folders and the name of `key`; BadInput for one that is absolute, climbs, is empty in places, too long or not plain ASCII."""
    names = tuple(key.split("/"))
    if len(key) > MAX_KEY_BYTES or len(names) > MAX_PARTS or not all(_PART.fullmatch(name) for name in names):
        raise BadInput(f"{key[:80]!r} is no key of a stored object.", code="bad_key")
    return names


def folder_parts(prefix: str) -> tuple[str, ...]:
    """The folders of a prefix, with or without its last slash; `""` is everything."""
    return parts(prefix.removesuffix("/")) if prefix else ()
