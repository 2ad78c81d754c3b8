"""What the doors reach: built in app.py, found on the running app."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from procrastinate import App

from roomtape.capture.segments import Segments
from roomtape.db.database import Database
from roomtape.db.outbox import Listener
from roomtape.settings import Settings
from roomtape.storage.disk import Disk
from roomtape.storage.failover import SpooledStore
from roomtape.tapes.layouts import Layouts
from roomtape.tapes.whole import Ropes
from roomtape.web.tokens import TokenJudge


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a request may need."""

    settings: Settings
    database: Database
    store: SpooledStore
    disk: Disk
    segments: Segments
    layouts: Layouts
    judge: TokenJudge
    queue: App
    listener: Listener
    ropes: Ropes


def services_of(request: Request) -> Services:
    """The services of the app that answers."""
    services: Services = request.app.state.services
    return services


Of = Annotated[Services, Depends(services_of)]
