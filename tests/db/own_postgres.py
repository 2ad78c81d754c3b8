"""An owner of an embedded PostgreSQL, to be killed: starts it in the folder given, writes a row, says its process id, and waits."""

import sys
from pathlib import Path

import psycopg

from roomtape.db.embedded import EmbeddedPostgres

server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
with psycopg.connect(server.url(), autocommit=True) as connection:
    connection.execute("CREATE TABLE kept (value text)")
    connection.execute("INSERT INTO kept VALUES ('acknowledged')")
print(server.pid, flush=True)
sys.stdin.read()
