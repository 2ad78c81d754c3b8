"""What is still missing of a recording: `make(1)` for meetings. A crash, a retry and a late chunk are the same case: plan again."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from roomtape.core.lifecycle import Status

HEADS = "3"  # raised when the generated heads change: the worker finds by FORM what was measured of the old ones, and it is measured again
FORM = f"{HEADS}-"  # what each recipe begins with


class Step(StrEnum):
    """One piece of work; each is idempotent and keyed by what goes in."""

    TAKE_UP = "take_up"  # byte cuts that wait behind a hole are parsed from the next cluster on
    MOVE = "move"  # bodies in the spool go to the store
    MEND = "mend"  # the few packets of an overlap off the packet grid are re-encoded
    ORIGINAL = "original"  # the whole as it was recorded: measured, hashed, verified
    COMPLETE = "complete"  # the state, and its event
    FAIL = "fail"  # the media yields nothing


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger says of a recording.

    `playable`: samples that a player can be given; `original`: the recipe that was made last; `lost`: of `chunks`, those that were taken and whose bytes are gone.
    """

    status: Status
    chunks: int
    waiting: int
    spooled: int
    unmended: int
    playable: int
    inputs: str
    original: str | None
    lost: int = 0


def recipe(inputs: Iterable[tuple[str, int, str]], mends: int) -> str:
    """Names everything the original is made of: the form of our heads, then a digest of the mended joins and of (track, index, sha256) of each chunk."""
    digest = sha256(f"mends {mends}\n".encode())
    for track, index, body in sorted(inputs):
        digest.update(f"{track} {index} {body}\n".encode())
    return FORM + digest.hexdigest()


def plan(facts: Facts) -> tuple[Step, ...]:
    """The steps still missing, in order; empty when nothing is to be done.

    Of what is completed only the measure may change, with the form of our heads: its joins, its state and the event of its end stay.
    """
    steps = [Step.MOVE] if facts.spooled else []
    if facts.status is Status.COMPLETED:
        return (*steps, Step.ORIGINAL) if facts.original != facts.inputs else tuple(steps)
    if facts.unmended:
        steps.append(Step.MEND)
    if facts.status is not Status.PROCESSING:
        return tuple(steps)
    if facts.waiting:
        return (Step.TAKE_UP, *steps)  # what it finds may want mending: plan again after it
    if not facts.playable:
        return (*steps, Step.FAIL)
    if facts.original != facts.inputs or facts.unmended:
        steps.append(Step.ORIGINAL)
    return (*steps, Step.COMPLETE)


def why_failed(facts: Facts) -> str:
    """The code of a recording that yields nothing: `no_media` (nothing came), `segment_lost` (we lost what came) or `unreadable` (what came cannot be read)."""
    if facts.lost:
        return "segment_lost"
    return "unreadable" if facts.chunks else "no_media"
