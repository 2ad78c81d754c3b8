"""Keys: built from our ids only, and told apart from everybody else's."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtape.core.keys import artifact_key, chunk_key, meeting_prefix, recording_of

texts = st.text(min_size=1, max_size=80)
digests = st.text("0123456789abcdef", min_size=32, max_size=64)


@given(texts, texts, st.uuids(), st.uuids(), texts, st.integers(1, (1 << 31) - 1), digests)
def test_every_key_of_ours_tells_its_recording(tenant: str, user: str, meeting: UUID, recording: UUID, track: str, index: int, digest: str) -> None:
    for owner in ("default", tenant):
        prefix = meeting_prefix(owner, user, meeting)
        assert recording_of(chunk_key(prefix, recording, track, index, digest, "0123456789ab")) == recording
        assert recording_of(artifact_key(prefix, recording, "original", digest)) == recording


MEETING, RECORDING = UUID(int=1), UUID(int=2)
GOOD = chunk_key(meeting_prefix("default", "user", MEETING), RECORDING, "1", 7, "a" * 64, "b" * 12)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "backup.tar",
        f"{RECORDING}/chunks/1/{7:010d}-{'a' * 32}",
        GOOD[:-1],
        GOOD + "a",
        GOOD + "\n",
        GOOD + ".bak",
        "/" + GOOD,
        "a/b/" + GOOD,
        GOOD.replace("chunks", "notes"),
        GOOD.replace("chunks/1/", "chunks/"),
        GOOD.replace("-a", "-A"),
        GOOD.replace("user/", "../"),
        GOOD.replace("0000000007", "7"),
        GOOD.replace(str(MEETING), "meeting"),
    ],
)
def test_what_is_not_exactly_our_form_is_nobodys(key: str) -> None:
    assert recording_of(GOOD) == RECORDING
    assert recording_of(key) is None
