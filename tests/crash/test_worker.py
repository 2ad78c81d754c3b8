"""A worker that the database does not hear for a while is a living worker afterwards: it beats, it works, and nothing of its work stands still."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from .client import Client, Ledger, script
from .judge import judge_meeting
from .stage import HEARTBEAT_S, Stage, staged, until

_DEAF = """
    CREATE FUNCTION deaf() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'io_error'; END $$;
    CREATE TRIGGER deaf BEFORE UPDATE ON {} FOR EACH ROW {} EXECUTE FUNCTION deaf()
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged(("serve", "work")) as running:
        running.worker_ready()
        yield running


@pytest.fixture(scope="module")
def client(stage: Stage) -> Iterator[Client]:
    with Client(stage.base, stage.key(), Ledger(stage.folder / "ledger")) as opened:
        yield opened


@pytest.fixture
def database(stage: Stage) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stage.url, autocommit=True) as connection:
        yield connection
        connection.execute("DROP FUNCTION IF EXISTS deaf CASCADE")


def silence_s(database: psycopg.Connection) -> float:
    row = database.execute("SELECT extract(epoch FROM now() - max(last_heartbeat))::float8 FROM procrastinate_workers").fetchone()
    assert row is not None
    return float(row[0])


def test_a_heartbeat_that_fails_is_followed_by_others(stage: Stage, client: Client, database: psycopg.Connection, chromium: Path) -> None:
    until(lambda: silence_s(database) < HEARTBEAT_S * 2, "the worker does not beat")
    database.execute(_DEAF.format("procrastinate_workers", ""))
    until(lambda: silence_s(database) > HEARTBEAT_S * 3, "the worker could still be heard")
    database.execute("DROP FUNCTION deaf CASCADE")
    until(lambda: silence_s(database) < HEARTBEAT_S * 2, "the worker never beat again", 20)
    played = stage.during(lambda: client.play(script(chromium / "B-opus", 2), "after the silence"))
    assert judge_meeting(client, played) == []


def test_the_end_of_a_job_is_said_until_it_is_heard(stage: Stage, client: Client, database: psycopg.Connection, chromium: Path) -> None:
    what = script(chromium / "B-opus", 2)
    meeting, recording = stage.during(lambda: client.start("unheard"))
    for at, path in enumerate(what.files):
        stage.during(lambda at=at, path=path: client.upload(meeting, recording, at + 1, path.read_bytes()))  # type: ignore[misc]
    database.execute(_DEAF.format("procrastinate_jobs", "WHEN (OLD.status = 'doing')"))
    database.execute("CREATE TRIGGER deaf_too BEFORE DELETE ON procrastinate_jobs FOR EACH ROW EXECUTE FUNCTION deaf()")
    assert stage.during(lambda: client.finish(meeting, recording, len(what.files))) == "completed"
    doing = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'"
    assert database.execute(doing).fetchone() == (1,), "its end has been heard after all"
    database.execute("DROP FUNCTION deaf CASCADE")
    until(lambda: database.execute(doing).fetchone() == (0,), "the job is being done for ever", 20)
    assert stage.falls == {}
