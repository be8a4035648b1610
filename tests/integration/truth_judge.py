"""The judge of a history: compares all that is shown or delivered with the model, and counts what must not be."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stream_state.clock import Clock
from stream_state.domain.merging import from_lists
from stream_state.domain.states import LOST_GRACE_MS, state_of
from stream_state.domain.targets import PRESENT, Medium
from tests.integration.truth_model import NAMES, ROOM, START_MS, Model, Said
from tests.unit.memory import APP_ID, MemoryTable

HOUR_MS = 3_600_000
PARTITION = f"state#{APP_ID}#{ROOM}"

type Values = Mapping[str, bool | None]
type Message = Mapping[str, Any]


class Judge:
    """Counts by name in `found`; `right_since_ms` is None while a record is not as the model is.

    `is_strict`: no request fails, so that no message is repeated. `absent_is_error`: the vendor answers so about an
    absent user, not with four zeros. `has_lost`: a leave may be lost. `by_presence`: only who is there is asked.
    """

    def __init__(
        self,
        model: Model,
        clock: Clock,
        table: MemoryTable,
        skew_ms: int,
        *,
        is_strict: bool,
        absent_is_error: bool,
        has_lost: bool,
        by_presence: bool = False,
    ) -> None:
        self._model, self._clock, self._table, self._skew_ms = model, clock, table, skew_ms
        self._is_strict, self._absent_is_error, self._has_lost = is_strict, absent_is_error, has_lost
        self._by_presence = by_presence
        self.found: Counter[str] = Counter(histories=1)
        self.right_since_ms: int | None = None
        # By user, name, value and whether it was an answer: as of when the vendor said so, and when that was stored.
        self._heard: dict[tuple[str, str, bool, bool], tuple[int, int]] = {}
        self._asked_ms: dict[tuple[str, str], int] = defaultdict(int)
        self._messages: dict[str, list[Message]] = defaultdict(list)
        self._looked_ms = START_MS
        # By user: the stored observations and the sequence, and their values; and which values were ever known.
        self._stored: dict[str, tuple[str, int]] = {}
        self._shown: dict[str, Values] = {user_id: dict.fromkeys(NAMES) for user_id in model.user_ids}
        self._was_known: set[tuple[str, str]] = set()

    def hear(self, said: Iterable[Said]) -> None:
        """Note what the vendor said, once it is stored."""
        for word in said:
            if 0 < word.asked_ms < self._asked_ms[word.user_id, word.name]:
                continue
            if word.asked_ms:
                # An answer that was asked for later takes the earlier one back, even if it lags more.
                self._asked_ms[word.user_id, word.name] = word.asked_ms
                self._heard.pop((word.user_id, word.name, not word.value, True), None)
            key = word.user_id, word.name, word.value, bool(word.asked_ms)
            self._heard[key] = max(self._heard.get(key, (0, 0)), (word.at_ms, self._clock.now_ms()))

    def deliver(self, message: Message) -> str:
        """A message reaches its consumer, who drops what is older than what they have."""
        user_id, sequence = message["user_id"], message["sequence"]
        earlier, item = self._messages[user_id], self.item(user_id)
        last = max((other["sequence"] for other in earlier), default=0)
        self.found["messages"] += 1
        repeated = [other for other in earlier if other["id"] == message["id"]]
        self.found["other content"] += any(_content(other) != _content(message) for other in repeated)
        self.found["sequence back"] += sequence < last and self._is_strict
        self.found["broken chain"] += sequence > last and not self._chains(message, earlier)
        earlier.append(message)
        # Where the record is ahead, a newer message is on its way.
        if sequence >= max(last, int(item["sequence"]["N"]) if item else 0):
            self.check(user_id, {**message["media"], PRESENT: message["present"]})
        return "message-1"

    def check(self, user_id: str, values: Values) -> None:
        """Judge the values that somebody is shown now."""
        self.found["answers"] += 1
        now_ms = self._clock.now_ms()
        for name, value in values.items():
            spell = self._model.spell(user_id, name, now_ms)
            if value is False and spell and self._last_heard(user_id, name, value=True)[0] >= spell.since_ms:
                self.found["false absent" if name == PRESENT else "false off"] += 1
            if value and not spell:
                ended_ms = max((spell.until_ms for spell in self._model.spells[user_id, name]), default=0)
                said_ms, stored_ms = self._last_heard(user_id, name, value=False)
                self.found["false on"] += said_ms >= ended_ms and now_ms - stored_ms > LOST_GRACE_MS

    def look(self) -> None:
        """Judge the records, which anybody may read from the table at any time."""
        now_ms = self._clock.now_ms()
        for user_id in self._model.user_ids:
            self._share(user_id, now_ms)
            item, (stored, sequence) = self.item(user_id), self._stored.get(user_id, ("", 0))
            if item is None:
                self._stored[user_id], self._shown[user_id] = ("", sequence), dict.fromkeys(NAMES)
                self._was_known -= {(user_id, name) for name in NAMES}
            elif item["observations"]["S"] != stored:
                self._stored[user_id] = item["observations"]["S"], int(item["sequence"]["N"])
                self.found["sequence back"] += self._stored[user_id][1] < sequence
                shown = state_of(from_lists(json.loads(item["observations"]["S"])), self._skew_ms).values
                self._shown[user_id] = shown
                self._was_known |= {(user_id, name) for name, value in shown.items() if value is not None}
            self.check(user_id, self._shown[user_id])
        self._looked_ms = now_ms
        is_right = all(self._is_right(user_id, name) for user_id in self._model.user_ids for name in NAMES)
        self.right_since_ms = (self.right_since_ms or now_ms) if is_right else None

    def look_if_expired(self) -> None:
        """Judge the records also between their expiry and the next write."""
        if any(stored and not self.item(user_id) for user_id, (stored, _) in self._stored.items()):
            self.look()

    def count_undelivered(self) -> None:
        """Count the records whose values are not those of their last message."""
        for user_id in filter(self.item, self._model.user_ids):
            last = max(self._messages[user_id], key=lambda message: message["sequence"], default=None)
            delivered = {**last["media"], PRESENT: last["present"]} if last else dict.fromkeys(NAMES)
            self.found["undelivered"] += delivered != self._shown[user_id]

    def item(self, user_id: str) -> Mapping[str, Any] | None:
        """The stored item of a record that has not expired."""
        item = self._table.items[PARTITION].get(user_id)
        return item if item and int(item["expires_at"]["N"]) > self._clock.now() else None

    def _chains(self, message: Message, earlier: Sequence[Message]) -> bool:
        """Whether `previous` and `changed` are of the message before, unless a crash hid it or the table forgot it."""
        previous, media = message["previous"], [other["media"] for other in earlier]
        is_known = previous in (media[-1:] if self._is_strict else media) or previous is None
        changed = {name for name in Medium if message["media"][name] != (previous or {}).get(name)}
        return is_known and changed == set(message["changed"]) - {PRESENT}

    def _last_heard(self, user_id: str, name: str, *, value: bool) -> tuple[int, int]:
        return max(self._heard.get((user_id, name, value, is_answer), (0, 0)) for is_answer in (True, False))

    def _share(self, user_id: str, now_ms: int) -> None:
        """Add up the time on, and how much of it was shown as not known; a day's pause does not count."""
        since_ms = max(self._looked_ms, now_ms - HOUR_MS)
        for medium in Medium:
            for spell in self._model.spells[user_id, medium]:
                on_ms = max(min(now_ms, spell.until_ms) - max(since_ms, spell.since_ms), 0)
                self.found["on_ms"] += on_ms
                self.found["null_ms"] += on_ms if self._shown[user_id][medium] is None else 0

    def _is_right(self, user_id: str, name: str) -> bool:
        """Whether the record says what the model says, or does not know what the vendor cannot say."""
        value, now_ms = self._shown[user_id][name], self._clock.now_ms()
        is_on, is_there = (self._model.spell(user_id, wanted, now_ms) is not None for wanted in (name, PRESENT))
        if self._by_presence and name != PRESENT and is_there:
            # Only an event that came says that a medium is on, or off, of somebody who is there.
            return True
        if self._by_presence:
            return value is is_on or (value is None and (user_id, name) not in self._was_known)
        if value is None:
            is_reported = self._absent_is_error and not is_there
            return (user_id, name) not in self._was_known or (not is_reported if name == PRESENT else is_reported)
        # Four zeros do not show that a user whose leave was lost has gone.
        is_misled = name == PRESENT and self._has_lost and not self._absent_is_error
        return value is is_on or (value and is_misled)


def _content(message: Message) -> object:
    return message["sequence"], message["media"], message["present"]
