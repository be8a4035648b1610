"""What the commands print: documents as text, symbols and colour on a terminal, and how far a wait is."""

import json
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

WIDTH = 116
IS_TERMINAL = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
IS_COLOURED = IS_TERMINAL and not os.environ.get("NO_COLOR")
ARROW = "→" if IS_TERMINAL and "utf" in str(sys.stdout.encoding).lower() else "->"
BOLD, RED, GREEN = 1, 31, 32
CLEAR_LINE = "\r\033[K"


def coloured(text: str, colour: int) -> str:
    """The text, in colour where colour is shown."""
    return f"\033[{colour}m{text}\033[0m" if IS_COLOURED else text


def heading(text: str) -> None:
    """Begin a part."""
    print(f"\n{coloured(text, BOLD)}\n{'-' * len(text)}")


def outcome_line(outcome: str, duration_ms: float) -> str:
    """The end of a request or invocation."""
    is_right = outcome in {"answer", "SUCCEEDED"} or outcome.startswith("HTTP 2")
    return f"{coloured(f'{ARROW} {outcome}', GREEN if is_right else RED)} after {duration_ms:.0f} ms"


def fill(text: str, indent: str) -> str:
    """The text in lines of that indent, further lines two deeper."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def time_of_day(seconds: float) -> str:
    """The time of day (UTC), with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()[11:23]


def state_words(document: Mapping[str, Any]) -> str:
    """A user, and what the user publishes."""
    on = [name for name, on in document["media"].items() if on]
    publishing = "is not known" if document["publishing"] is None else f"publishes {', '.join(on) or 'nothing'}"
    return f"{document['user_id']} {'has left' if document['present'] is False else publishing}"


def state_line(document: Mapping[str, Any]) -> str:
    """A state or message in one line."""
    if "message_id" in document:
        more = f"message {document['message_id']}"
    elif "changed" in document:
        first = document["previous"] is None
        more = "delivered for the first time" if first else f"changed: {', '.join(document['changed']) or 'nothing'}"
    else:
        more = f"{document['source']} {document['rtc_request_id'] or ''}"
    return f"{state_words(document):<48} {document['observed_at'][11:]}  {more}"


def document_text(document: Mapping[str, Any], *, in_full: bool) -> str:
    """A document of any kind: a summary and, unless `in_full`, a state in one line, anything else as JSON."""
    if "delivered" in document:
        return ", ".join(f"{name} {value}" for name, value in document.items() if value != [])
    if "media" in document and not in_full:
        return state_line(document)
    return fill(json.dumps(document), "    ").lstrip()


def http_request(event: Mapping[str, Any]) -> str:
    """The part of an HTTP event that a person asks with."""
    method = event["httpMethod"] if "httpMethod" in event else event["requestContext"]["http"]["method"]
    query = "&".join(f"{name}={value}" for name, value in (event.get("queryStringParameters") or {}).items())
    return f"{method} {event.get('path') or event['rawPath']}{'?' * bool(query)}{query} {event.get('body') or ''}"


@contextmanager
def progress(text: Callable[[], str]) -> Iterator[None]:
    """Say how far a wait is: in place on a terminal, else with a line every two seconds."""
    ended = threading.Event()

    def say() -> None:
        # If the reader has gone, the next line of the main thread meets that too.
        with suppress(OSError):
            while not ended.wait(0.2 if IS_TERMINAL else 2):
                print(f"{CLEAR_LINE}  {text()}" if IS_TERMINAL else f"  {text()}\n", end="", flush=True)
            print(CLEAR_LINE if IS_TERMINAL else "", end="", flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
