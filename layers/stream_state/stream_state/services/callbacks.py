"""Callback events: verified, merged into state records, and their changes delivered; and rechecks of records."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from itertools import batched, repeat
from typing import TYPE_CHECKING, Any, Self

from stream_state.adapters.credentials import CachedSecret, callback_keys
from stream_state.adapters.queues import MAX_BATCH_ENTRIES
from stream_state.adapters.state_store import STATE_LIFE_SECONDS, StateStore
from stream_state.adapters.table import Table, entries_of
from stream_state.adapters.watch_list import WatchList
from stream_state.domain.callback_events import FIELDS, CallbackEvent, has_observation, is_signed
from stream_state.domain.documents import Answer, observed
from stream_state.domain.merging import StateRecord
from stream_state.domain.parsing import JsonError, parse_json
from stream_state.domain.targets import PRESENT, Room, Target
from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    DeliveryFailed,
    InvalidRequest,
    StreamStateError,
)
from stream_state.observability import add_metric, log_error, logger
from stream_state.services.delivery import Delivery
from stream_state.services.recording import Recorder
from stream_state.settings import Settings

if TYPE_CHECKING:
    from stream_state.services.lookup import Lookup

# A signature that fits no key has the secret read again this often: a rotation is seen, an attacker costs little.
KEYS_REREAD_SECONDS = 10
# A recheck that failed for good is asked for again after so long.
RECHECK_LATER_MS = 900_000
MAX_UNKNOWN_TYPES = 20
_MAX_TYPE_LENGTH = 64


@dataclass
class Callbacks:
    """Receives callback events and carries out rechecks, one at a time; safe to share among threads."""

    keys: CachedSecret[tuple[str, ...]]
    delivery: Delivery
    watch_list: WatchList
    app_ids: Sequence[str]
    auto_watch: bool = False
    _keys_read_at: float = float("-inf")
    _unknown_types: set[str] = field(default_factory=set)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Callbacks as the settings describe them, with short time-outs: the vendor waits for five seconds only."""
        table = Table.from_settings(settings, read_timeout_seconds=0.5)
        recorder = Recorder.from_settings(settings, StateStore.from_settings(settings, table, delivers=True))
        delivery = Delivery.from_settings(settings, recorder, timeout_seconds=1)
        app_ids, auto_watch = settings.rtc_app_ids, settings.auto_watch
        return cls(callback_keys(settings), delivery, WatchList(table), app_ids, auto_watch)

    @property
    def recorder(self) -> Recorder:
        """The recorder of the delivery."""
        return self.delivery.recorder

    def verified(self, text: str, received_at_ms: int) -> CallbackEvent | None:
        """The event in a text whose signature fits; None for an event without an observation.

        Raises `InvalidRequest` for an event that is refused, with the HTTP status that says why, and
        `CredentialsUnavailable` while no key can verify it.
        """
        try:
            body = parse_json(text)
        except JsonError as error:
            raise _refused(f"the body {error}") from None
        if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in FIELDS):
            raise _refused(f"the body must be an object with the texts {', '.join(FIELDS)}")
        fields: dict[str, str] = {name: body[name] for name in FIELDS}
        if not self._is_verified(fields):
            raise _refused("the signature fits no callback key", HTTPStatus.UNAUTHORIZED)
        if fields["AppId"] not in self.app_ids:
            raise _refused("the AppId is not one of RtcAppIds", HTTPStatus.FORBIDDEN)
        if (is_of_interest := has_observation(fields["EventType"])) is None:
            self._count_unknown(fields["EventType"])
        if not is_of_interest:
            return None
        try:
            return CallbackEvent.parse(fields, received_at_ms, self.recorder.clock.now_ms())
        except InvalidRequest as error:
            raise _refused(error.detail.rstrip(".")) from None

    def receive(self, event: CallbackEvent | None, deadline: float) -> bool:
        """Merge a verified event and deliver the change; None is an event without an observation.

        False if `deadline` (monotonic seconds) came before all users of a room that ended were done. Raises
        `StateUnavailable` or `DeliveryFailed` for an event that must come again.
        """
        add_metric("CallbackEvents")
        if event is None:
            return True
        if not event.has_plausible_time:
            add_metric("CallbackEventsIgnored", reason="implausible_time")
        # The table may have forgotten what was newer than so old an event, even if the event waited in the queue.
        if event.mark.at_ms <= self.recorder.clock.now_ms() - STATE_LIFE_SECONDS * 1000:
            add_metric("CallbackEventsIgnored", reason="too_old")
            return True
        if isinstance(event.target, Target):
            is_done = True
            self._merge({event.target: None}, event, deadline)
        else:
            is_done = self._room_ended(event.target, event, deadline)
        self.delivery.drain(deadline)
        return is_done

    def recheck(self, target: Target, due_ms: int, lookup: "Lookup", deadline: float) -> bool:
        """Carry out the recheck of a target that is due at a time; False if it must come again.

        Raises `StateUnavailable` and `DeliveryFailed`.
        """
        if self.recorder.clock.monotonic() > deadline:
            return False
        stored = self.recorder.store.read([target], to_merge=True)[target]
        # Else the doubt was settled, or another message stands for it.
        is_done = stored.recheck_at_ms != due_ms or self._recheck(stored, lookup, deadline)
        after = self.recorder.store.newest(target, stored)
        if self.auto_watch and after.last_event_ms and after.state.values[PRESENT]:
            # A leave in doubt has shortened the watch of a user who is there.
            self.watch_list.joined(target, after.last_event_ms)
        self.delivery.drain(deadline)
        return is_done

    def _recheck(self, stored: StateRecord, lookup: "Lookup", deadline: float) -> bool:
        """Ask the vendor about a target in doubt and deliver the change; False if that failed and may pass."""
        outcome = lookup.recheck(stored, deadline)
        if isinstance(outcome.merge, StreamStateError):
            log_error(outcome.merge, stored.target)
            if not outcome.merge.retryable:
                # Keys may be replaced and a policy corrected. Queries that are off stay so.
                later_ms = self.recorder.clock.now_ms() + RECHECK_LATER_MS
                self.recorder.store.set_recheck(stored, later_ms if lookup.query != "off" else 0)
            return not outcome.merge.retryable
        after = outcome.merge.after
        if after.is_undelivered:
            for sent in self.delivery.send([observed(outcome.answer, outcome.merge)], deadline):
                _raise_failure(sent)
        return True

    def _room_ended(self, room: Room, event: CallbackEvent, deadline: float) -> bool:
        self.recorder.store.end_room(room, event.mark)
        # The users whose records do not have the end, or have an undelivered change.
        not_yet_off = (
            record
            for record in entries_of(partial(self.recorder.store.room, room, to_merge=True))
            # An expired record counts only if the last message said something else than off.
            if record.observations or {*(record.delivered or {}).values()} - {False}
            if record.is_undelivered or not record.merged(event.observations, 0).is_repeat
        )
        for index, records in enumerate(batched(not_yet_off, MAX_BATCH_ENTRIES, strict=False)):
            # The first users are done in any case, so that tries that begin late get on too.
            if index and self.recorder.clock.monotonic() > deadline:
                return False
            self._merge({record.target: record for record in records}, event, deadline)
        return True

    def _merge(self, found: Mapping[Target, StateRecord | None], event: CallbackEvent, deadline: float) -> None:
        """Merge an event into the records of its users, watch, deliver the changes, and only then shorten watches.

        `found`: the users, with their records if these were read.
        """
        how: dict[str, Any] = {"source": "callback", "is_room_end": isinstance(event.target, Room)}
        observe = partial(self.recorder.observe, **how)
        with ThreadPoolExecutor(len(found)) as pool:
            merges = pool.map(observe, found, repeat(event.observations), found.values())
            records = [merge.after for merge in merges]
        # The record decides: a join may arrive after the leave that followed it.
        for after in records:
            if self.auto_watch and event.is_arrival and after.state.present.value is not False:
                self.watch_list.joined(after.target, event.mark.at_ms)
        changed = [after for after in records if after.is_undelivered]
        sent = self.delivery.send([Answer(after, "callback") for after in changed], deadline)
        outcomes = dict(zip((after.target for after in changed), sent, strict=True))
        for after in records:
            is_delivered = not isinstance(outcomes.get(after.target), DeliveryFailed)
            if self.auto_watch and event.is_departure and is_delivered and not after.state.present.value:
                self.watch_list.left(after.target, event.mark.at_ms)
        for outcome in sent:
            _raise_failure(outcome)

    def _is_verified(self, fields: Mapping[str, str]) -> bool:
        try:
            keys = self.keys.keys()
            if is_signed(fields, keys):
                return True
            if self.recorder.clock.monotonic() - self._keys_read_at < KEYS_REREAD_SECONDS:
                return False
            self._keys_read_at = self.recorder.clock.monotonic()
            return is_signed(fields, self.keys.keys_after_rejection(keys, self.recorder.clock.monotonic()))
        except (CredentialsInvalid, CredentialsUnavailable) as error:
            # An event that nobody can verify is not kept: the vendor sends it again.
            raise CredentialsUnavailable(error.detail) from None

    def _count_unknown(self, event_type: str) -> None:
        """Count an event of an unknown type by its name, as long as the names are few."""
        is_name = event_type.isascii() and event_type.isalnum() and len(event_type) <= _MAX_TYPE_LENGTH
        if is_name and len(self._unknown_types) < MAX_UNKNOWN_TYPES:
            self._unknown_types.add(event_type)
        reason = event_type if event_type in self._unknown_types else "unknown_type"
        logger.info("The type of the callback event is unknown.", extra={"event_type": reason})
        add_metric("CallbackEventsIgnored", reason=reason)


def _raise_failure(sent: str | DeliveryFailed) -> None:
    if isinstance(sent, DeliveryFailed):
        raise sent


def _refused(why: str, status: int = HTTPStatus.BAD_REQUEST) -> InvalidRequest:
    return InvalidRequest(f"The event is not accepted: {why}.", status=status)
