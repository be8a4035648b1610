"""Callback events: verified, merged into state records, and their changes delivered; and rechecks of records."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from itertools import batched
from typing import TYPE_CHECKING, Self

from stream_state.adapters.credentials import CachedSecret, callback_keys
from stream_state.adapters.queues import MAX_BATCH_ENTRIES, MAX_RECHECKS, RetryQueue
from stream_state.adapters.state_store import STATE_LIFE_SECONDS, StateStore
from stream_state.adapters.table import Table
from stream_state.adapters.watch_list import WatchList
from stream_state.clock import CLOCK, Clock
from stream_state.domain.callback_events import FIELDS, CallbackEvent, has_observation, is_signed
from stream_state.domain.documents import Message
from stream_state.domain.merging import Merge
from stream_state.domain.parsing import JsonError, parse_json
from stream_state.domain.targets import PRESENT, Room, Target
from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    DeliveryFailed,
    InvalidRequest,
    StreamStateError,
)
from stream_state.observability import log_error, logger, record
from stream_state.services.delivery import Delivery, message_of
from stream_state.services.recording import Recorder
from stream_state.settings import Settings

if TYPE_CHECKING:
    from stream_state.services.lookup import Lookup

# A signature that fits no key has the secret read again this often: a rotation is seen, an attacker costs little.
KEYS_REREAD_SECONDS = 10
MAX_UNKNOWN_TYPES = 20
_MAX_TYPE_LENGTH = 64


class Callbacks:
    """Receives callback events and carries out rechecks, one at a time; safe to share among threads."""

    def __init__(
        self,
        keys: CachedSecret[tuple[str, ...]],
        store: StateStore,
        recorder: Recorder,
        delivery: Delivery,
        watch_list: WatchList,
        app_ids: Sequence[str],
        *,
        auto_watch: bool = False,
        clock: Clock = CLOCK,
    ) -> None:
        self._keys = keys
        self.store = store
        self._recorder = recorder
        self._delivery = delivery
        self._watch_list = watch_list
        self._app_ids = app_ids
        self._auto_watch = auto_watch
        self._clock = clock
        self._keys_read_at = float("-inf")
        self._unknown_types: set[str] = set()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Callbacks as the settings describe them, with short time-outs: the vendor waits for five seconds only."""
        table = Table.from_settings(settings, read_timeout_seconds=0.5)
        store = StateStore.from_settings(settings, table)
        return cls(
            callback_keys(settings),
            store,
            Recorder.from_settings(settings, store, delivers=True),
            Delivery.from_settings(settings, store, timeout_seconds=1),
            WatchList(table),
            settings.rtc_app_ids,
            auto_watch=settings.auto_watch,
        )

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
        if fields["AppId"] not in self._app_ids:
            raise _refused("the AppId is not one of RtcAppIds", HTTPStatus.FORBIDDEN)
        if (is_of_interest := has_observation(fields["EventType"])) is None:
            self._count_unknown(fields["EventType"])
        if not is_of_interest:
            return None
        try:
            return CallbackEvent.parse(fields, received_at_ms, self._clock.now_ms())
        except InvalidRequest as error:
            raise _refused(f"{error.detail.rstrip('.')}") from None

    def receive(self, event: CallbackEvent | None, deadline: float) -> bool:
        """Merge a verified event and deliver the change; None is an event without an observation.

        False if `deadline` (monotonic seconds) came before all users of a room that ended were done. Raises
        `StateUnavailable` or `DeliveryFailed` for an event that must come again.
        """
        record("CallbackEvents")
        if event is None:
            return True
        if not event.has_plausible_time:
            record("CallbackEventsIgnored", reason="implausible_time")
        # The table may have forgotten what was newer than so old an event, even if the event waited in the queue.
        if event.at_ms <= self._clock.now_ms() - STATE_LIFE_SECONDS * 1000:
            record("CallbackEventsIgnored", reason="too_old")
            return True
        is_done = self._room_ended(event, deadline) if event.user_id is None else self._user_changed(event, deadline)
        self._delivery.drain(deadline)
        return is_done

    def recheck(self, target: Target, tries: int, lookup: "Lookup", retry_queue: RetryQueue, deadline: float) -> None:
        """Ask the vendor about a target in doubt and deliver the change; raises `DeliveryFailed`."""
        outcome = lookup.recheck(target, deadline)
        if isinstance(outcome.merge, Merge):
            if outcome.merge.after.is_undelivered:
                self._send([message_of(outcome.merge.after, outcome.answer)], deadline)
            if self._auto_watch and outcome.merge.after.state.values[PRESENT]:
                # A leave in doubt has shortened the watch of a user who is there.
                self._watch_list.joined(target, outcome.merge.after.last_event_ms)
        else:
            log_error(outcome.merge, target)
            if outcome.merge.retryable and tries + 1 < MAX_RECHECKS:
                retry_queue.recheck(target, tries + 1)
            else:
                for state_record in self.store.read([target]).values():
                    self.store.set_recheck(state_record, 0)
        self._delivery.drain(deadline)

    def _user_changed(self, event: CallbackEvent, deadline: float) -> bool:
        self._merge([Target(event.app_id, event.room_id, event.user_id or "")], event, deadline)
        return True

    def _room_ended(self, event: CallbackEvent, deadline: float) -> bool:
        self.store.end_room(Room(event.app_id, event.room_id), event.mark)
        for index, targets in enumerate(batched(self._not_yet_off(event), MAX_BATCH_ENTRIES, strict=False)):
            # The first users are done in any case, so that tries that begin late get on too.
            if index and self._clock.monotonic() > deadline:
                return False
            self._merge(targets, event, deadline)
        return True

    def _not_yet_off(self, event: CallbackEvent) -> Iterator[Target]:
        """The users of a room that ended whose records do not have the end, or have an undelivered change."""
        after: str | None = None
        while True:
            page = self.store.room(Room(event.app_id, event.room_id), after, to_merge=True)
            for state_record in page.entries:
                if state_record.is_undelivered or not state_record.merged(event.observations, 0).is_repeat:
                    yield state_record.target
            after = page.next_key
            if after is None:
                return

    def _merge(self, targets: Sequence[Target], event: CallbackEvent, deadline: float) -> None:
        """Merge an event into the records of its users, watch, deliver the changes, and only then shorten watches."""
        with ThreadPoolExecutor(len(targets)) as pool:
            merges = list(
                pool.map(lambda target: self._recorder.observe(target, event.observations, source="callback"), targets)
            )
        is_there = (
            {merge.after.target: merge.after.state.values[PRESENT] for merge in merges} if self._auto_watch else {}
        )
        if event.is_arrival:
            # The record decides: a join may arrive after the leave that followed it.
            for target in (target for target, present in is_there.items() if present is not False):
                self._watch_list.joined(target, event.at_ms)
        messages = [Message(merge.after, "callback") for merge in merges if merge.after.is_undelivered]
        sent = zip(messages, self._delivery.send(messages, deadline), strict=True)
        failed = {message.target: outcome for message, outcome in sent if isinstance(outcome, DeliveryFailed)}
        if event.is_departure:
            for target in (target for target, present in is_there.items() if not present and target not in failed):
                self._watch_list.left(target, event.at_ms)
        for error in failed.values():
            raise error

    def _send(self, messages: Sequence[Message], deadline: float) -> None:
        for outcome in self._delivery.send(messages, deadline):
            if isinstance(outcome, StreamStateError):
                raise outcome

    def _is_verified(self, fields: Mapping[str, str]) -> bool:
        try:
            keys = self._keys.keys()
            if is_signed(fields, keys):
                return True
            if self._clock.monotonic() - self._keys_read_at < KEYS_REREAD_SECONDS:
                return False
            self._keys_read_at = self._clock.monotonic()
            return is_signed(fields, self._keys.keys_after_rejection(keys, self._clock.monotonic()))
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
        record("CallbackEventsIgnored", reason=reason)


def _refused(why: str, status: int = HTTPStatus.BAD_REQUEST) -> InvalidRequest:
    return InvalidRequest(f"The event is not accepted: {why}.", status=status)
