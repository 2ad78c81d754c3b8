"""A worker process to be killed or frozen: does the task `step` of the database given and says when it has begun.

Usage: work.py URL NAME HEARTBEAT_S; the step of the worker named `slow` waits for a file `URL-independent` path given as argument 4.
"""

import asyncio
import sys
from pathlib import Path

from procrastinate import JobContext

from roomtape.db import jobs
from roomtape.db.database import Database

URL, NAME, HEARTBEAT_S, GO = sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])


async def main() -> None:
    app = jobs.queue_app(URL, heartbeat_s=HEARTBEAT_S)
    database = Database(URL)
    await database.open()

    @app.task(name="step", pass_context=True)
    async def step(context: JobContext, thing: str) -> None:
        assert context.job.id is not None
        ticket = jobs.Ticket(context.job.id, context.job.attempts)
        print("begun", flush=True)
        while NAME == "slow" and not GO.exists():
            await asyncio.sleep(0.02)
        async with database.transaction() as connection:
            cursor = await connection.execute("INSERT INTO made SELECT %s, %s WHERE %s RETURNING 1", [NAME, thing, await jobs.still_mine(connection, ticket)])
            print("made", len(await cursor.fetchall()), flush=True)

    async def take_over() -> None:
        while True:
            async with database.transaction() as connection:
                await jobs.take_over(connection, heartbeat_s=HEARTBEAT_S)
            await asyncio.sleep(HEARTBEAT_S)

    async with app.open_async():
        background = asyncio.create_task(take_over())
        try:
            await app.run_worker_async()
        finally:
            background.cancel()


asyncio.run(main())
