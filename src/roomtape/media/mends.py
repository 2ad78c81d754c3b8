"""A mend as bytes for a database column: the packets that were encoded anew around a join."""

import struct

from roomtape.core.timeline import Mend

_HEAD = struct.Struct("<BIqI")
_VERSION = 1


def pack_mend(mend: Mend) -> bytes:
    """Version, file index, offset in microseconds, then each packet behind its size."""
    packets = b"".join(struct.pack("<H", len(packet)) + packet for packet in mend.packets)
    return _HEAD.pack(_VERSION, mend.file, mend.offset_us, len(mend.packets)) + packets


def unpack_mend(blob: bytes) -> Mend:
    """What pack_mend packed. Raises ValueError for anything else."""
    try:
        version, file, offset_us, count = _HEAD.unpack_from(blob)
        at, packets = _HEAD.size, []
        for _ in range(count):
            (size,) = struct.unpack_from("<H", blob, at)
            packets.append(blob[at + 2 : at + 2 + size])
            at += 2 + size
    except struct.error as damage:
        raise ValueError("These bytes are not a packed mend.") from damage
    if version != _VERSION or at != len(blob):
        raise ValueError("These bytes are not a packed mend.")
    return Mend(file, offset_us, tuple(packets))
