"""The sample events, and the room of which they speak."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.sandbox.signatures import signed

EVENTS = Path(__file__).parents[2] / "events"
ROOM = "class-1"
# What each user of the room publishes.
CLASSROOM: Mapping[str, tuple[str, ...]] = {
    "teacher": ("Audio", "Video"),
    "student-1": (),
    "student-2": ("ScreenAudio", "ScreenVideo"),
}


def sample(name: str) -> dict[str, Any]:
    """An event of events/, its times made present."""
    event: dict[str, Any] = json.loads((EVENTS / name).read_text())
    for asked in (event, event.get("wait", {})):
        if "until" in asked:
            asked["until"]["started_at"] = datetime.now(UTC).isoformat()
    if name.startswith("callback/"):
        for carrier in event.get("Records", [event]):
            carrier["body"] = signed(json.loads(carrier["body"]))
            if "attributes" in carrier:
                carrier["messageAttributes"] = {}
                carrier["attributes"]["SentTimestamp"] = str(int(time.time() * 1000))
    return event
