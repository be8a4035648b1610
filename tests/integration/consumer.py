"""A consumer of the queue as the documents describe one: it drops repeats, and what is older than what it has."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Two who deliver a change at once may compare it with different last messages: `changed` and `previous` are theirs.
SAME = ("media", "present", "publishing", "sequence")


@dataclass
class Consumer:
    """The latest message about each target, and the number of messages that were repeats."""

    kept: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    _seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    _by_sequence: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)

    def take(self, body: str) -> dict[str, Any]:
        """Take a message; fails if two messages of one id, or of one sequence of a target, contradict each other."""
        message: dict[str, Any] = json.loads(body)
        if message["type"] == "stream_state_problem":
            self.problems[message["problem"]["error"]] += 1
            return message
        target = (message["room_id"], message["user_id"])
        values = {name: message[name] for name in SAME}
        assert self._by_sequence.setdefault((*target, message["sequence"]), values) == values
        self.repeats += message["id"] in self._seen
        first = self._seen.setdefault(message["id"], message)
        assert {name: first[name] for name in SAME} == values
        if target not in self.kept or message["sequence"] >= self.kept[target]["sequence"]:
            self.kept[target] = message
        return message
