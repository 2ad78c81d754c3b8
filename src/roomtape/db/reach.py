"""The first call at a database, before any pool: a setting that leads nowhere is refused in a sentence instead of being waited for."""

import re

import psycopg

from roomtape.core.errors import Refused
from roomtape.db.database import CONNECT_S


def reach(conninfo: str) -> None:
    """Returns when the database of ROOMTAPE_DATABASE_URL lets us in; Refused."""
    try:
        psycopg.connect(conninfo, connect_timeout=CONNECT_S).close()
    except psycopg.ProgrammingError:
        raise Refused(
            "ROOMTAPE_DATABASE_URL is no address: make it like postgresql://user:password@host/name.", code="no_database"
        ) from None  # it has the password
    except psycopg.OperationalError as wrong:
        said = [line for line in str(wrong).splitlines() if line[:1].strip()]  # libpq indents its hints; of several addresses the last speaks
        why = re.split(r"connection (?:failed|is bad): ", said[-1])[-1] if said else "no reason given"
        raise Refused(f"ROOMTAPE_DATABASE_URL leads to no database that lets us in ({why}): start it, or correct the setting.", code="database_away") from wrong
