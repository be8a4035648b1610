"""The state records in the table, the ends of rooms, and the list of undelivered changes and of rechecks."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Self

from stream_state.adapters import record_items
from stream_state.adapters.table import (
    BACKOFF_SECONDS,
    MAX_TRIES,
    PAGE_ITEMS,
    ConditionFailed,
    Item,
    Page,
    Table,
    attributes,
    key_of,
    target_of,
    unavailable,
)
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import Mark, Observations
from stream_state.domain.targets import Room, Target
from stream_state.settings import Settings

STATE_LIFE_SECONDS = 86_400
# The writer of a change delivers it within this time, or anybody else does.
DELIVERY_SECONDS = 10
# A recheck that is overdue by so much was lost, and is asked for again.
RECHECK_LATE_SECONDS = 60
MOST_KEPT = 1000


@dataclass(eq=False)
class StateStore:
    """State records, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails.

    `delivers`: this function delivers the changes that it writes; else anybody may deliver them at once.
    """

    table: Table
    skew_ms: int = 5000
    recheck_after_ms: int | None = None
    delivers: bool = False
    # The records that this instance wrote last, so that the next write of each is seldom refused.
    _kept: OrderedDict[Target, StateRecord] = field(default_factory=OrderedDict, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    @classmethod
    def from_settings(cls, settings: Settings, table: Table, *, delivers: bool = False) -> Self:
        """The store of a table; rechecks are asked for only where they can be sent and carried out."""
        skew_ms = int(settings.rtc_skew_seconds * 1000)
        can_recheck = settings.rtc_query != "off" and settings.callback_retry_queue_url
        return cls(table, skew_ms, skew_ms + 1000 if can_recheck else None, delivers)

    def observe(
        self,
        target: Target,
        observations: Observations,
        before: StateRecord | None = None,
        *,
        recheck_due_ms: int = 0,
        is_room_end: bool = False,
    ) -> Merge:
        """Merge observations into the record of a target and write it.

        `before` is the record if it was read. `recheck_due_ms`: the recheck that is due then is done with this.
        `is_room_end`: the room's own item holds these observations too.
        """
        before = self.newest(target, before)
        merge = self._merge(before, observations, recheck_due_ms=recheck_due_ms, is_end=is_room_end)
        if merge.after.is_room_end_read:
            return merge
        # A room's end is written before its records are listed, and read after a record is first written, so that
        # neither misses the other.
        end = self._room_end(target.room)
        record = replace(merge.after, is_room_end_read=True)
        if end is None or end == record.observations.get("end"):
            self._keep(record)
            return Merge(merge.before, record)
        return Merge(merge.before, self._merge(record, {"end": end}, is_end=True).after)

    def newest(self, target: Target, read: StateRecord | None) -> StateRecord:
        """The newer of the record that was read and the one that this instance wrote last; else a new record."""
        kept = self._kept.get(target)
        if kept is None or kept.expires_at <= self.table.clock.now():
            kept = StateRecord(target, skew_ms=self.skew_ms)
        return read if read and read.revision > kept.revision else kept

    def mark_waits(self, target: Target) -> StateRecord:
        """Mark the record of a target: workflows wait for it. The life of a record that there is is not prolonged."""

        def marked(record: StateRecord) -> StateRecord:
            return replace(record.merged({}, self.table.clock.now_ms()).after, has_waits=True)

        try:
            # Hundreds of workflows may mark one record at the same moment: none of them keeps another from it.
            answer = self.table.write(
                "update_item",
                "attribute_exists(revision) AND expires_at > :now",
                {":yes": True, ":one": 1, ":now": int(self.table.clock.now())},
                Key=record_items.key(target),
                UpdateExpression="SET has_waits = :yes, revision = revision + :one",
                ReturnValues="ALL_NEW",
            )
        except ConditionFailed as failed:
            return self._write(self._record(target, failed.item), marked).after
        record = self._record(target, answer["Attributes"])
        self._keep(record)
        return record

    def unmark_waits(self, record: StateRecord) -> StateRecord:
        """Take the mark from a record that no workflow waits for, unless others have written meanwhile."""
        try:
            return self._put(replace(record, has_waits=False))
        except ConditionFailed:
            return record

    def end_room(self, room: Room, end: Mark) -> None:
        """Remember the end of a room, for records that are written later."""
        changes = {"at_ms": end.at_ms, "seen_ms": end.seen_ms, "expires_at": self._expires_at()}
        # Of one end that arrived twice the first arrival counts.
        newer = "attribute_not_exists(at_ms) OR at_ms < :at_ms OR (at_ms = :at_ms AND seen_ms > :seen_ms)"
        with suppress(ConditionFailed):
            self.table.update(record_items.room_key(room), changes, newer)

    def mark_delivered(self, record: StateRecord) -> None:
        """Write that the values of a record were delivered, and take the record off the list if that was the last."""

        def delivered(stored: StateRecord) -> StateRecord:
            # The list can show a record for a moment that has been deleted.
            if not stored.revision or (stored is not record and stored.delivered_sequence >= record.sequence):
                return stored
            marked = stored.with_delivery(record.state.values, record.sequence)
            return replace(marked, is_room_end_read=record.is_room_end_read)

        self._write(record, delivered)

    def undelivered(self, most: int, after: str | None = None) -> Page[StateRecord]:
        """A page of the records on the list whose writers have had the time to deliver them, the oldest first."""
        start = {"ExclusiveStartKey": json.loads(after)} if after else {}
        answer = self.table.call(
            "query",
            IndexName=record_items.INDEX,
            KeyConditionExpression="undelivered = :listed AND deliver_after <= :now",
            ExpressionAttributeValues=attributes({":listed": record_items.LISTED, ":now": self.table.clock.now_ms()}),
            Limit=most,
            **start,
        )
        records = self.read([record_items.target_of_key(item) for item in answer["Items"]], to_merge=True)
        next_key = answer.get("LastEvaluatedKey")
        return Page(list(records.values()), record_items.as_json(next_key) if next_key else None)

    def set_recheck(self, record: StateRecord, due_ms: int) -> bool:
        """Write when the recheck of a record is due, 0 if none is; False if others have written meanwhile."""
        try:
            self._put(replace(record, recheck_at_ms=due_ms))
        except ConditionFailed:
            return False
        return True

    def read(self, targets: Iterable[Target], *, to_merge: bool = False) -> dict[Target, StateRecord]:
        """The records of the targets, eventually consistent; targets without a record are left out.

        With `to_merge` consistent and of every target, for `observe`.
        """
        keys = {target: record_items.key(target) for target in targets}
        items = {target_of(item): item for item in self.table.get_all(keys.values(), consistent=to_merge)}
        records = {target: self._record(target, items.get(target, {})) for target in keys}
        return records if to_merge else {target: record for target, record in records.items() if record.observations}

    def room(
        self, room: Room, after: str | None = None, *, to_merge: bool = False, most: int = PAGE_ITEMS
    ) -> Page[StateRecord]:
        """A page of the records of a room's users, in the order of their ids; with `to_merge` as `read`."""
        page = self.table.query(record_items.partition(room), after, consistent=to_merge, most=most)
        # The room `class-1#`, which the board can be asked for, holds the end of the room `class-1`.
        records = [self._record(target_of(item), item) for item in page.entries if "user_id" in item]
        return Page([record for record in records if to_merge or record.observations], page.next_key)

    def rooms(self, after: str) -> Page[Room]:
        """A page of rooms with a record that has not expired, in the table's own order.

        The page begins after the place `after`, a partition key and a sort key. It can be empty before the end of the
        list.
        """
        pk, _, sk = after.rpartition("/")
        answer = self.table.call(
            "scan",
            Limit=PAGE_ITEMS,
            FilterExpression="begins_with(pk, :state) AND attribute_exists(user_id) AND expires_at > :now",
            ProjectionExpression="app_id, room_id",
            ExpressionAttributeValues=attributes({":state": "state#", ":now": int(self.table.clock.now())}),
            **({"ExclusiveStartKey": key_of(pk, sk)} if after else {}),
        )
        found = dict.fromkeys(Room(item["app_id"]["S"], item["room_id"]["S"]) for item in answer["Items"])
        end = answer.get("LastEvaluatedKey")
        if end is None:
            return Page(list(found), None)
        # The page ended within a room: the next goes on after that room if this page has it, else from that very key.
        is_to_come = end["pk"]["S"].startswith("state#") and record_items.target_of_key(end).room not in found
        return Page(list(found), f"{end['pk']['S']}/{end['sk']['S'] if is_to_come else '~'}")

    def _merge(self, first: StateRecord, observations: Observations, *, recheck_due_ms: int = 0, is_end: bool) -> Merge:
        """Merge and write; a record that others have written and that holds all of it stays as it is."""

        def merged(record: StateRecord) -> StateRecord:
            now_ms = self.table.clock.now_ms()
            merge = record.merged(observations, now_ms)
            # The first record may be an older one that this instance kept: only the write shows what is stored.
            if merge.is_repeat and record is not first and not recheck_due_ms:
                return record
            # While a recheck asks, others can ask for another one.
            recheck_at_ms = 0 if record.recheck_at_ms == recheck_due_ms else record.recheck_at_ms
            # A recheck that came too soon after an event, for which it was not meant, settles nothing. If its answer
            # leaves the user out, another one would bring no more.
            is_too_soon = recheck_due_ms > 0 and bool(observations) and merge.after.is_asked_too_soon
            needs_recheck = merge.needs_recheck or (is_too_soon and merge.after.state.is_contradicted)
            # One that is overdue failed or was lost, and one that is due later waits for something else.
            after_ms = self.recheck_after_ms or 0
            if needs_recheck and after_ms and not now_ms <= recheck_at_ms <= now_ms + after_ms:
                recheck_at_ms = now_ms + after_ms
            deliver_after_ms = now_ms + DELIVERY_SECONDS * 1000 if self.delivers else now_ms
            # The end of a room prolongs no record of a user who had gone already.
            is_prolonged = not is_end or merge.after.state.values != record.state.values
            return replace(
                merge.after,
                recheck_at_ms=recheck_at_ms,
                deliver_after_ms=deliver_after_ms,
                expires_at=0 if is_prolonged else record.expires_at,
            )

        return self._write(first, merged)

    def _write(self, record: StateRecord, change: Callable[[StateRecord], StateRecord]) -> Merge:
        """Change and write, again with the stored record each time that others have written meanwhile.

        Nothing is written if `change` gives back the record that it got.
        """
        for tries in range(MAX_TRIES):
            changed = change(record)
            if changed is record:
                return Merge(record, record)
            try:
                return Merge(record, self._put(changed))
            except ConditionFailed as failed:
                record = self._record(record.target, failed.item)
            if tries % 2:
                # Many write this record at once. A try after a pause brings what they wrote in it, for one without.
                self.table.clock.sleep(self.table.clock.jitter(0, BACKOFF_SECONDS))
        raise unavailable("others wrote the same state each time")

    def _put(self, record: StateRecord) -> StateRecord:
        """The record, written in place of its own revision; raises `ConditionFailed` if another one is stored.

        A record without an expiry gets one, and the list shows a change, and a recheck that was not carried out.
        """
        late_ms = record.recheck_at_ms + RECHECK_LATE_SECONDS * 1000 if record.recheck_at_ms else 0
        change_ms = record.deliver_after_ms or self.table.clock.now_ms()
        written = replace(
            record,
            revision=record.revision + 1,
            expires_at=record.expires_at or self._expires_at(),
            deliver_after_ms=change_ms if record.is_undelivered else late_ms,
        )
        condition = "revision = :revision" if record.revision else "attribute_not_exists(revision)"
        values = {":revision": record.revision} if record.revision else {}
        try:
            self.table.write("put_item", condition, values, Item=record_items.item_of(written))
        except ConditionFailed as failed:
            # If the answer to this very write was lost, the client's second try is refused.
            if self._record(record.target, failed.item) != written:
                raise
        self._keep(written)
        return written

    def _record(self, target: Target, item: Item) -> StateRecord:
        if not item:
            return StateRecord(target, skew_ms=self.skew_ms)
        record = record_items.record_of(target, item, self.skew_ms)
        return record if self.table.is_alive(item) else record.forgotten()

    def _keep(self, record: StateRecord) -> None:
        with self._lock:
            self._kept[record.target] = record
            self._kept.move_to_end(record.target)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)

    def _room_end(self, room: Room) -> Mark | None:
        item = self.table.call("get_item", Key=record_items.room_key(room), ConsistentRead=True).get("Item")
        is_known = item and self.table.is_alive(item)
        return Mark(int(item["at_ms"]["N"]), int(item["seen_ms"]["N"])) if is_known else None

    def _expires_at(self) -> int:
        return int(self.table.clock.now()) + STATE_LIFE_SECONDS
