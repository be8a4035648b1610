"""A consumer of the queue as the documents describe one: it drops repeats, and what is older than what it has."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Two who tell the same news at once may compare it with different last messages: `changed` and `previous` are theirs.
TOLD = ("media", "present", "publishing", "sequence")


@dataclass
class Consumer:
    """What it keeps of each target, and how many messages it dropped as repeats."""

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
        values = {"media": message["media"], "present": message["present"]}
        assert self._by_sequence.setdefault((*target, message["sequence"]), values) == values
        if message["id"] in self._seen:
            first = self._seen[message["id"]]
            assert {name: first[name] for name in TOLD} == {name: message[name] for name in TOLD}
            self.repeats += 1
            return message
        self._seen[message["id"]] = message
        if target not in self.kept or message["sequence"] >= self.kept[target]["sequence"]:
            self.kept[target] = message
        return message
