"""What workers log, and how: as lines to read, or as JSON lines for a collector (``DYN_LOGGING_JSONL``)."""

from __future__ import annotations

import datetime
import json
import logging

from dynamo.core.config import Settings


class JsonLines(logging.Formatter):
    """One object a line, in Dynamo's words: time (ISO 8601, UTC), level, target (the logger), message."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname,
            "target": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


def configure(settings: Settings) -> None:
    """The root logger writes to stderr, at the level of ``DYN_LOG``; unknown ones are INFO."""
    level = settings.log.partition(",")[0].upper()
    logging.basicConfig(
        level=level if level in logging.getLevelNamesMapping() else "INFO",
        format="%(levelname)s %(name)s: %(message)s",
    )
    if settings.log_jsonl:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())


def as_json(worker: str, line: str) -> str:
    """A line of a worker as a JSON line that names the worker; what is no log record was printed."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or "message" not in told:
        told = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(),
            "level": "INFO",
            "target": "output",
            "message": line,
        }
    return json.dumps({**told, "worker": worker})
