"""Silent packets: a hole in the sound is filled with bytes, never with an encoder, for a hole makes Media Source drop pictures."""

from itertools import pairwise

from roomtape.media.sample import Stream

# Opus, CELT-only full band, mono, two bytes of zero energy (RFC 6716): decoders take them inside a stereo stream. Duration in µs -> packet.
_OPUS = ((20_000, b"\xf8\xff\xfe"), (10_000, b"\xf0\xff\xfe"), (5_000, b"\xe8\xff\xfe"), (2_500, b"\xe0\xff\xfe"))
# AAC-LC, one raw_data_block of 1024 samples with all spectra zero, by number of channels
_AAC = {1: b"\x00\xc8\x00\x80\x23\x80", 2: b"\x21\x00\x49\x90\x02\x19\x00\x23\x80"}
_AAC_FRAME = 1024


def silence(stream: Stream, duration_us: int) -> list[tuple[bytes, int]]:
    """Packets of silence and their lengths in µs that come nearest to `duration_us`: Opus within 1.25 ms, AAC within half a frame.

    Empty for a codec, or a number of channels, without known silence.
    """
    if stream.codec == "opus":
        left, packets = (duration_us + 1_250) // 2_500 * 2_500, []
        for length, packet in _OPUS:
            packets += [(packet, length)] * (left // length)
            left %= length
        return packets
    if stream.codec == "aac" and stream.channels in _AAC and stream.rate:
        count = round(duration_us * stream.rate / 1_000_000 / _AAC_FRAME)
        edges = [round(number * _AAC_FRAME * 1_000_000 / stream.rate) for number in range(count + 1)]
        return [(_AAC[stream.channels], stop - start) for start, stop in pairwise(edges)]
    return []
