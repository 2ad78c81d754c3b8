"""The state tables: what is listed happens, nothing else, and nothing moves backwards."""

import pytest

from roomtape.core.lifecycle import CHUNK_NEXT, NEXT, OPEN, ChunkState, MeetingState, Status, meeting_state, sources_of

ORDER = [Status.PENDING, Status.RECORDING, Status.STOPPED, Status.PROCESSING, Status.COMPLETED]


def test_terminal_states_are_never_left() -> None:
    assert [state for state, nexts in NEXT.items() if not nexts] == [Status.COMPLETED, Status.FAILED]


def test_nothing_moves_backwards_but_a_pause() -> None:
    for early, late in ((a, b) for i, b in enumerate(ORDER) for a in ORDER[:i]):
        assert early not in NEXT[late]
    assert Status.RECORDING in NEXT[Status.PAUSED]


def test_sources_are_the_table_read_backwards() -> None:
    for target in Status:
        assert set(sources_of(target)) == {state for state in Status if target in NEXT[state]}


@pytest.mark.parametrize(
    ("newest", "state"),
    [
        (None, MeetingState.CREATED),
        (Status.PENDING, MeetingState.RECORDING),
        (Status.RECORDING, MeetingState.RECORDING),
        (Status.PAUSED, MeetingState.RECORDING),
        (Status.STOPPED, MeetingState.PROCESSING),
        (Status.PROCESSING, MeetingState.PROCESSING),
        (Status.COMPLETED, MeetingState.PROCESSED),
        (Status.FAILED, MeetingState.FAILED),
    ],
)
def test_a_meeting_follows_its_newest_recording(newest: Status | None, state: MeetingState) -> None:
    assert meeting_state(newest) is state


def test_each_state_is_in_the_tables() -> None:
    assert set(NEXT) == set(Status)
    assert set(CHUNK_NEXT) == set(ChunkState)
    assert set(Status) > OPEN
