"""Formats the log: as text for people, or as one JSON object per line for programs.

    {"time": "2026-11-30T20:20:54.123Z", "level": "warning", "event": "problem-ended", "message": "Resolved after 0:01:10: …", "fields": {…}}

`event` is a stable name: that of the event, else of the logger (`store`). `fields` holds the event's data. Nothing is masked here, because
callers never log addresses, values or keys.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from proxy.config.types import LogFormat

_PACKAGE = "proxy."


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON. `several`: more than one process writes to this log, so each line has a process id."""

    def __init__(self, *, several: bool = False) -> None:
        super().__init__()
        self._several = several

    def format(self, record: logging.LogRecord) -> str:
        given = vars(record)
        fields: dict[str, Any] = dict(given.get("fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": given.get("event") or record.name.removeprefix(_PACKAGE),
            "message": record.getMessage(),
            "fields": fields,
        }
        if self._several:
            line["process"] = record.process
        return json.dumps(line, default=str)


def start_logging(level: str, form: LogFormat = LogFormat.TEXT, *, several: bool = False) -> None:
    """Sets up the root logger. `several`: as in `JsonFormatter`."""
    handler = logging.StreamHandler(sys.stderr)
    who = " [%(process)d]" if several else ""
    text = logging.Formatter(f"%(asctime)s %(levelname)s{who} %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter(several=several) if form is LogFormat.JSON else text)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # uvicorn's own start and stop lines say nothing that ours do not; httpx would log URLs, which can hold addresses.
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
