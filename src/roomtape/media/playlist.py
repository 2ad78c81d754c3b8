"""HLS playlists as text (RFC 8216): what players ask for first, and again every few seconds while a recording runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

_HEAD = ("#EXTM3U", "#EXT-X-VERSION:7")


@dataclass(frozen=True, slots=True)
class Window:
    """One media segment. `init` is the URI of its set-up; `lost`: there is nothing to fetch, players skip it."""

    uri: str
    start_us: int
    stop_us: int
    init: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """One media playlist of a master. `codecs` are spelled by RFC 6381; `bandwidth` is measured, in bits a second; no picture: width 0."""

    uri: str
    codecs: Sequence[str]
    bandwidth: int
    width: int = 0
    height: int = 0
    audio_group: str = ""


@dataclass(frozen=True, slots=True)
class Audio:
    """Another encoding of the sound, for players that do not take the first one."""

    group: str
    name: str
    uri: str
    language: str = ""
    default: bool = False


def bandwidth(sizes: Sequence[int], windows: Sequence[Window]) -> int:
    """The peak of the windows' bit rates, as BANDWIDTH is defined (RFC 8216, 4.3.4.2); `sizes` in bytes. 0 without windows."""
    spans = ((size, window.stop_us - window.start_us) for size, window in zip(sizes, windows, strict=True) if not window.lost)
    return max((-(-size * 8_000_000 // span) for size, span in spans if span > 0), default=0)


def master(variants: Sequence[Variant], audio: Sequence[Audio] = ()) -> str:
    """The master playlist. It is always served: a media playlist alone tells no CODECS, and players then guess from the init, wrongly for VP9."""
    lines = [*_HEAD, "#EXT-X-INDEPENDENT-SEGMENTS"]
    for sound in audio:
        language = f',LANGUAGE="{sound.language}"' if sound.language else ""
        default = "YES" if sound.default else "NO"
        lines.append(f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="{sound.group}",NAME="{sound.name}"{language},DEFAULT={default},AUTOSELECT=YES,URI="{sound.uri}"')
    for variant in variants:
        size = f",RESOLUTION={variant.width}x{variant.height}" if variant.width else ""
        group = f',AUDIO="{variant.audio_group}"' if variant.audio_group else ""
        lines.append(f'#EXT-X-STREAM-INF:BANDWIDTH={variant.bandwidth},CODECS="{",".join(variant.codecs)}"{size}{group}')
        lines.append(variant.uri)
    return "\n".join(lines) + "\n"


def media(windows: Sequence[Window], *, ended: bool, target_us: int, begun: datetime | None = None) -> str:
    """A media playlist of type EVENT while it grows; with `ended` of type VOD, to which nothing is added any more.

    `target_us`: the longest window there will be; it must not change while players reload, but a longer window raises it rather than break the rule.
    `begun`: the wall clock at the recording's 0; it is told at the start and where the clock cannot be counted on from durations.
    """
    longest_us = max([target_us, *(window.stop_us - window.start_us for window in windows)])
    lines = [*_HEAD, f"#EXT-X-TARGETDURATION:{max(1, (longest_us + 500_000) // 1_000_000)}", "#EXT-X-MEDIA-SEQUENCE:0"]
    lines.append(f"#EXT-X-PLAYLIST-TYPE:{'VOD' if ended else 'EVENT'}")
    lines.append("#EXT-X-INDEPENDENT-SEGMENTS")
    before: Window | None = None
    for window in windows:
        changed = before is None or window.init != before.init
        if changed and before:
            lines.append("#EXT-X-DISCONTINUITY")
        if changed:
            lines.append(f'#EXT-X-MAP:URI="{window.init}"')
        if begun and (changed or (before and before.stop_us != window.start_us)):
            stamp = (begun + timedelta(microseconds=window.start_us)).isoformat(timespec="milliseconds")
            lines.append(f"#EXT-X-PROGRAM-DATE-TIME:{stamp.replace('+00:00', 'Z')}")
        if window.lost:
            lines.append("#EXT-X-GAP")
        span_us = window.stop_us - window.start_us
        lines += [f"#EXTINF:{span_us // 1_000_000}.{span_us % 1_000_000:06d},", window.uri]
        before = window
    if ended:
        lines.append("#EXT-X-ENDLIST")
    return "\n".join(lines) + "\n"
