"""A worker that is told to end does so, also while nobody hears it: it must not outlive its owner."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from .client import Client, Ledger, script
from .stage import Stage, staged, until

_DEAF = """
    CREATE FUNCTION deaf() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'io_error'; END $$;
    CREATE TRIGGER deaf BEFORE UPDATE ON procrastinate_jobs FOR EACH ROW WHEN (OLD.status = 'doing') EXECUTE FUNCTION deaf();
    CREATE TRIGGER deaf_too BEFORE DELETE ON procrastinate_jobs FOR EACH ROW EXECUTE FUNCTION deaf()
"""
LIMIT_S = 15


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged(("serve", "work")) as running:
        running.worker_ready()
        yield running


def lost(stage: Stage) -> bool:
    """Whether the worker has met a database that is away."""
    log = (stage.folder / "work.log").read_text()
    return "worker.interrupted" in log or "round.failed" in log


def ends(stage: Stage) -> int:
    stage.wanted.discard("work")
    stage.parts["work"].send_signal(signal.SIGTERM)
    return stage.parts["work"].wait(LIMIT_S)


def test_an_idle_worker_ends_while_the_database_is_dead(stage: Stage) -> None:
    stage.postgres.stop()
    until(lambda: lost(stage), "the worker has not noticed")
    assert ends(stage) == 0


def test_a_worker_whose_job_nobody_can_be_told_about_ends_while_the_database_is_dead(stage: Stage, chromium: Path) -> None:
    with Client(stage.base, stage.key(), Ledger(stage.folder / "ledger")) as client:
        what = script(chromium / "B-opus", 2)
        meeting, recording = stage.during(lambda: client.start("unheard"))
        for at, path in enumerate(what.files):
            stage.during(lambda at=at, path=path: client.upload(meeting, recording, at + 1, path.read_bytes()))  # type: ignore[misc]
        with psycopg.connect(stage.url, autocommit=True) as database:
            database.execute(_DEAF)
        assert stage.during(lambda: client.finish(meeting, recording, len(what.files))) == "completed"
    stage.postgres.stop()
    until(lambda: lost(stage), "the worker has not noticed")
    assert ends(stage) == 0
