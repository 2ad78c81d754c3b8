"""Planning: whatever happened before, the same facts ask for the same steps, and doing them ends the work."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from roomtape.core.lifecycle import Status
from roomtape.core.plan import Facts, Step, plan, recipe, why_failed

DONE = Facts(Status.PROCESSING, chunks=5, waiting=0, spooled=0, unmended=0, playable=100, inputs="a", original="a")
facts = st.builds(
    Facts,
    st.sampled_from(Status),
    chunks=st.integers(0, 3),
    waiting=st.integers(0, 2),
    spooled=st.integers(0, 2),
    unmended=st.integers(0, 2),
    playable=st.integers(0, 2),
    inputs=st.sampled_from("ab"),
    original=st.sampled_from([None, "a", "b"]),
)


def done(step: Step, now: Facts) -> Facts:
    """The facts after a step."""
    match step:
        case Step.TAKE_UP:
            return replace(now, waiting=0)
        case Step.MOVE:
            return replace(now, spooled=0)
        case Step.MEND:
            return replace(now, unmended=0)
        case Step.ORIGINAL:
            return replace(now, original=now.inputs)
        case Step.COMPLETE:
            return replace(now, status=Status.COMPLETED)
        case Step.FAIL:
            return replace(now, status=Status.FAILED)


@given(facts)
def test_planning_and_doing_ends(now: Facts) -> None:
    for _ in range(10):
        steps = plan(now)
        if not steps:
            break
        now = done(steps[0], now)
    assert plan(now) == ()
    assert now.status is not Status.PROCESSING


@given(facts)
def test_nothing_is_completed_before_it_is_whole_and_measured(now: Facts) -> None:
    steps = plan(now)
    if steps[:1] == (Step.COMPLETE,):
        assert (now.waiting, now.spooled, now.unmended, now.original) == (0, 0, 0, now.inputs)
        assert now.playable


def test_a_late_mend_asks_for_the_original_again() -> None:
    assert plan(DONE) == (Step.COMPLETE,)
    assert plan(replace(DONE, unmended=1)) == (Step.MEND, Step.ORIGINAL, Step.COMPLETE)


def test_of_what_is_completed_only_the_measure_changes() -> None:
    completed = replace(DONE, status=Status.COMPLETED)
    assert plan(completed) == plan(replace(completed, unmended=1)) == ()
    assert plan(replace(completed, original="of other heads", unmended=1)) == (Step.ORIGINAL,)


def test_what_yields_nothing_says_why() -> None:
    nothing = replace(DONE, chunks=0, playable=0)
    assert plan(nothing) == (Step.FAIL,)
    assert why_failed(nothing) == "no_media"
    assert why_failed(replace(nothing, chunks=3)) == "unreadable"


def test_the_recipe_knows_each_input_and_no_order() -> None:
    inputs = [("1", 1, "aa"), ("1", 2, "bb"), ("2", 1, "cc")]
    assert recipe(inputs, 0) == recipe(reversed(inputs), 0)
    assert len({recipe(inputs, 0), recipe(inputs, 1), recipe(inputs[:2], 0), recipe([*inputs[:2], ("2", 1, "dd")], 0)}) == 4
