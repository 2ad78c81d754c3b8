"""The schema: brought up at every start, by any number at once, never downwards."""

import subprocess
import sys
from itertools import product
from uuid import uuid4

import psycopg
import pytest

from roomtape.core.errors import Refused, Unavailable
from roomtape.core.lifecycle import CHUNK_NEXT, NEXT
from roomtape.db.schema import migrate
from roomtape.testing.postgres import fresh_database

MIGRATE = "import sys; from roomtape.db.schema import migrate; migrate(sys.argv[1])"


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    before = tables(database_url)
    migrate(database_url)
    assert tables(database_url) == before
    assert {"chunks", "recordings", "events", "procrastinate_jobs"} <= before


def test_four_processes_migrate_one_empty_database_at_once() -> None:
    with fresh_database(migrated=False) as url:
        running = [subprocess.Popen([sys.executable, "-c", MIGRATE, url]) for _ in range(4)]
        assert [process.wait(60) for process in running] == [0, 0, 0, 0]
        assert "chunks" in tables(url)


def test_a_migration_that_dies_in_the_middle_leaves_nothing_and_runs_again() -> None:
    with fresh_database(migrated=False) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE playback_tokens (in_the_way int)")  # our migration fails after half of its tables
            with pytest.raises(Exception, match="playback_tokens"):
                migrate(url)
            assert "meetings" not in tables(url)
            connection.execute("DROP TABLE playback_tokens")
        migrate(url)
        assert "meetings" in tables(url)


def test_a_database_of_a_newer_roomtape_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Refused, match="newer Roomtape"):
        migrate(database_url)


def test_an_unreachable_database_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        migrate("postgresql://nobody@/none?host=/nonexistent")


def test_a_new_version_of_the_queue_applies_the_steps_this_database_has_not_seen(database_url: str) -> None:
    step = "03.04.00_50_post_add_retry_failed_job_procedure.sql"
    with psycopg.connect(database_url, autocommit=True) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM queue_migrations")}
        assert step in names
        connection.execute("DELETE FROM queue_migrations WHERE name = %s", [step])
        restored = "CREATE FUNCTION procrastinate_retry_job_v1(bigint, timestamptz, integer, varchar, varchar) RETURNS void LANGUAGE sql AS ''"
        connection.execute("DROP FUNCTION IF EXISTS procrastinate_retry_job_v1")
        connection.execute(restored)
    migrate(database_url)
    with psycopg.connect(database_url) as connection:
        assert {row[0] for row in connection.execute("SELECT name FROM queue_migrations")} == names


def make_recording(connection: psycopg.Connection, status: str) -> str:
    meeting, recording = uuid4(), uuid4()
    connection.execute("INSERT INTO meetings (id, room_code) VALUES (%s, %s)", [meeting, str(meeting)])
    connection.execute(
        "INSERT INTO recordings (id, meeting_id, owner_id, prefix, source, status) VALUES (%s, %s, 'u', 'p/', 'segments', %s)", [recording, meeting, status]
    )
    return str(recording)


def test_the_database_itself_allows_exactly_the_steps_of_the_table_of_states(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for source, target in product(NEXT, NEXT):
            recording = make_recording(connection, source)
            allowed = target is source or target in NEXT[source]
            try:
                connection.execute("UPDATE recordings SET status = %s WHERE id = %s", [target, recording])
                assert allowed, f"{source} became {target}"
            except psycopg.errors.CheckViolation:
                assert not allowed, f"{source} did not become {target}"


def test_the_database_itself_allows_exactly_the_steps_of_chunks(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        recording = make_recording(connection, "recording")
        connection.execute("INSERT INTO tracks (recording_id, id) VALUES (%s, '1')", [recording])
        for index, (source, target) in enumerate(product(CHUNK_NEXT, CHUNK_NEXT), 1):
            connection.execute(
                "INSERT INTO chunks (recording_id, track_id, index, size_bytes, sha256, key, state, stored_in, commit_seq) VALUES (%s, '1', %s, 1, %s, 'k', %s, 'primary', 1)",
                [recording, index, "0" * 64, source],
            )
            allowed = target is source or target in CHUNK_NEXT[source]
            try:
                connection.execute("UPDATE chunks SET state = %s WHERE recording_id = %s AND index = %s", [target, recording, index])
                assert allowed, f"{source} became {target}"
            except psycopg.errors.CheckViolation:
                assert not allowed, f"{source} did not become {target}"
