"""The nouns every floor shares: frozen values, integer microseconds on the recording's clock."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an elementary stream carries."""

    AUDIO = "audio"
    VIDEO = "video"


class Source(StrEnum):
    """The meeting stack a recording comes from."""

    SEGMENTS = "segments"
    LIVEKIT = "livekit"
    AGORA = "agora"
    RTP = "rtp"
    DISCORD = "discord"
    SIMULATED = "simulated"


class ClockTrust(StrEnum):
    """How a track stands on the recording's clock: `measured` by clockOffsetUs, `client` as stated, `none` by itself."""

    MEASURED = "measured"
    CLIENT = "client"
    NONE = "none"


class StoredIn(StrEnum):
    """Where an acknowledged body is: the store, or the taking machine's fsynced spool while the store fails."""

    PRIMARY = "primary"
    SPOOL = "spool"


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole in a track: start ≤ t < end on the recording's clock, in microseconds."""

    track: str
    start_us: int
    end_us: int
    reason: str
    segment_index: int | None = None
