"""Log events, not prose: one line of JSON each on stderr, or readable on a terminal; secrets never reach it."""

import io
import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

_SECRET = re.compile(r"(?i)(rt_[\w-]{8,}|token=[^&\s\"']+|/p/[\w-]{20,}|postgresql://[^@\s]+@|password=\S+)")


def _hush(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _SECRET.sub("***", value)
    return event


class _Stderr(io.TextIOBase):
    """The log's stream: a line that cannot be written (a full disk) is lost, and what it tells of goes on."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def configure() -> None:
    """Sets up logging of the whole process."""
    terminal = sys.stderr.isatty()
    shared: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    last: list[Any] = [structlog.dev.ConsoleRenderer()] if terminal else [structlog.processors.format_exc_info, _hush, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *([_hush] if terminal else []), *last],
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Stderr())),  # a line is one write: the parts of `up` share stderr
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
