"""Logs: constant dotted events with ids as fields.  Never a prompt, and no key survives the mask."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

from turnkeeper_worker.masking import mask

#: Libraries whose chatter tells an operator nothing, and from which level on they are heard.
QUIET_LOGGERS = {
    **dict.fromkeys(
        ("httpx", "httpcore", "aiohttp", "celery.worker.strategy", "celery.app.trace", "alembic"), logging.WARNING
    ),
    # A stack trace for each time that a Redis without memory refuses something; `broker.lost` says so as well.
    "kombu.transport.redis": logging.ERROR,
}

COMPLAINS_EVERY_SECONDS = 5.0
"""What fails dozens of times a second need not be said each time."""


def configure_logging(level: str, *, as_json: bool) -> None:
    """Send our events and the libraries' records to standard error, in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            # First: what nobody will read need not be put together.
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(shared, as_json=as_json))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name, quiet in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(max(quiet, root.level))


def _formatter(shared: list[structlog.typing.Processor], *, as_json: bool) -> structlog.stdlib.ProcessorFormatter:
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        # The default shows the local variables of every frame: keys and prompts among them.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            mask_secrets,
            last,
        ],
    )


def mask_secrets(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Take secrets out of every text of a log record, whoever wrote it."""
    return {name: mask(value) if isinstance(value, str) else value for name, value in event.items()}


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger for *name*."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


class Complaint:
    """Something that goes wrong many times a second, said once per some seconds, with how often it was meant.

    Args:
        log: Where it is said.
        event: What is said.
        level: How loud.
        counted: The field that says how often.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        log: structlog.stdlib.BoundLogger,
        event: str,
        *,
        level: int = logging.WARNING,
        counted: str = "times",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._event = event
        self._level = level
        self._counted = counted
        self._clock = clock
        self._unsaid = 0
        self._silent_until = clock()

    def make(self, *, count: int = 1, **fields: Any) -> None:
        """Complain, or remember that there was reason to."""
        self._unsaid += count
        now = self._clock()
        if now >= self._silent_until:
            self._log.log(self._level, self._event, **{self._counted: self._unsaid}, **fields)
            self._unsaid = 0
            self._silent_until = now + COMPLAINS_EVERY_SECONDS
