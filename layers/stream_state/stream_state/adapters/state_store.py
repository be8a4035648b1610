"""The state records in the table, the ends of rooms, and the list of undelivered changes and of rechecks."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import batched
from typing import Self

from stream_state.adapters.kept_records import KeptRecords
from stream_state.adapters.record_items import (
    INDEX,
    LISTED,
    as_json,
    item_of,
    key,
    partition,
    record_of,
    room_key,
    target_of_key,
)
from stream_state.adapters.table import (
    BACKOFF_SECONDS,
    MAX_BATCH_KEYS,
    MAX_TRIES,
    PAGE_ITEMS,
    ConditionFailed,
    Item,
    Page,
    Scalar,
    Table,
    attributes,
    target_of,
    unavailable,
)
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import Mark, Observations
from stream_state.domain.targets import Target
from stream_state.settings import Settings

STATE_LIFE_SECONDS = 86_400
# The writer of a change delivers it within this time, or anybody else does.
DELIVERY_SECONDS = 10
# A recheck that is overdue by so much was lost, and is asked for again.
RECHECK_LATE_SECONDS = 60


class StateStore:
    """State records, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails."""

    def __init__(self, table: Table, skew_ms: int = 5000, recheck_after_ms: int | None = None) -> None:
        self.table = self._table = table
        self._clock = table.clock
        self._skew_ms = skew_ms
        self._recheck_after_ms = recheck_after_ms
        self._kept = KeptRecords(table.clock)

    @classmethod
    def from_settings(cls, settings: Settings, table: Table) -> Self:
        """The store of a table; rechecks are asked for only where they can be sent and carried out."""
        skew_ms = int(settings.rtc_skew_seconds * 1000)
        can_recheck = settings.rtc_query != "off" and settings.callback_retry_queue_url
        return cls(table, skew_ms, skew_ms + 1000 if can_recheck else None)

    def observe(
        self,
        target: Target,
        observations: Observations,
        before: StateRecord | None = None,
        *,
        delivers: bool = False,
        is_recheck: bool = False,
    ) -> Merge:
        """Merge observations into the record of a target and write it.

        `before` is the record if it was read. `delivers`: the caller delivers the change; else others may at once.
        `is_recheck`: the record's recheck is done with this.
        """
        kept = self._kept.get(target)
        if before is None or (kept and kept.revision >= before.revision):
            before = kept or StateRecord(target, skew_ms=self._skew_ms)
        merge = self._merge(before, observations, delivers=delivers, is_recheck=is_recheck)
        if merge.after.is_room_end_read:
            return merge
        # A room's end is written before its records are listed, and read after a record is first written, so that
        # neither misses the other.
        end = self._room_end(target)
        record = replace(merge.after, is_room_end_read=True)
        if end is None or end == record.observations.get("end"):
            self._kept.keep(record)
            return Merge(merge.before, record)
        return Merge(merge.before, self._merge(record, {"end": end}, delivers=delivers).after)

    def set_waits(self, target: Target) -> StateRecord:
        """Mark the record of a target: workflows wait for it. Its life is not prolonged."""
        is_alive = "attribute_exists(revision) AND expires_at > :now"
        try:
            answer = self._table.write(
                "update_item",
                is_alive,
                {":yes": True, ":one": 1, ":now": int(self._clock.now())},
                Key=key(target),
                UpdateExpression="SET has_waits = :yes, revision = revision + :one",
                ReturnValues="ALL_NEW",
            )
        except ConditionFailed as failed:
            before = self._record(target, failed.item)
            return self._merge(before, {}, delivers=False, has_waits=True).after
        self._kept.forget(target)
        return self._record(target, answer["Attributes"])

    def end_waits(self, record: StateRecord) -> StateRecord:
        """Take the mark from a record that no workflow waits for, unless others have written meanwhile."""
        after = replace(record, has_waits=False, revision=record.revision + 1)
        try:
            self._table.write(
                "update_item",
                "revision = :revision",
                {":no": False, ":one": 1, ":revision": record.revision},
                Key=key(record.target),
                UpdateExpression="SET has_waits = :no, revision = revision + :one",
            )
        except ConditionFailed:
            return record
        self._kept.keep(after)
        return after

    def end_room(self, app_id: str, room_id: str, end: Mark) -> None:
        """Remember the end of a room, for records that are written later."""
        with suppress(ConditionFailed):
            self._table.write(
                "update_item",
                "attribute_not_exists(at_ms) OR at_ms < :at_ms",
                {":at_ms": end.at_ms, ":seen_ms": end.seen_ms, ":expires_at": self._expires_at()},
                Key=room_key(app_id, room_id),
                UpdateExpression="SET at_ms = :at_ms, seen_ms = :seen_ms, expires_at = :expires_at",
            )

    def mark_delivered(self, record: StateRecord) -> None:
        """Write that the values of a record were delivered, and take the record off the list if that was the last."""
        delivered = replace(record.with_delivery(record.state.values, record.sequence), revision=record.revision + 1)
        values: dict[str, Scalar] = {
            ":delivered": as_json(delivered.delivered),
            ":sequence": delivered.sequence,
            ":room": delivered.is_room_end_read,
            ":one": 1,
        }
        update = "SET delivered = :delivered, delivered_sequence = :sequence, is_room_end_read = :room"
        update += ", revision = revision + :one"
        place = key(record.target)
        if record.recheck_at_ms:
            of_list, listing = {":late": _late_ms(record)}, ", deliver_after = :late"
        else:
            of_list, listing = {}, " REMOVE undelivered, deliver_after"
        try:
            here = {**values, **of_list, ":revision": record.revision}
            self._table.write("update_item", "revision = :revision", here, Key=place, UpdateExpression=update + listing)
        except ConditionFailed:
            # Others have written meanwhile: the record stays on the list until the next drain.
            self._kept.forget(record.target)
            with suppress(ConditionFailed):
                is_newer = "delivered_sequence < :sequence"
                self._table.write("update_item", is_newer, values, Key=place, UpdateExpression=update)
        else:
            self._kept.keep(delivered)

    def undelivered(self, most: int, after: str | None = None) -> Page[StateRecord]:
        """A page of the records on the list whose writers have had the time to deliver them, the oldest first."""
        start = {"ExclusiveStartKey": json.loads(after)} if after else {}
        answer = self._table.call(
            "query",
            IndexName=INDEX,
            KeyConditionExpression="undelivered = :listed AND deliver_after <= :now",
            ExpressionAttributeValues=attributes({":listed": LISTED, ":now": self._clock.now_ms()}),
            Limit=most,
            **start,
        )
        targets = [target_of_key(item) for item in answer["Items"]]
        records = self.read(targets, to_merge=True) if targets else {}
        next_key = answer.get("LastEvaluatedKey")
        return Page(list(records.values()), as_json(next_key) if next_key else None)

    def set_recheck(self, record: StateRecord, due_ms: int) -> None:
        """Write when the recheck of a record is due; 0: none is."""
        self._kept.forget(record.target)
        due = replace(record, recheck_at_ms=due_ms)
        with suppress(ConditionFailed):
            self._table.write(
                "update_item",
                "revision = :revision",
                {":due": due_ms, ":late": _late_ms(due), ":revision": record.revision, ":one": 1},
                Key=key(record.target),
                UpdateExpression="SET recheck_at_ms = :due, deliver_after = :late, revision = revision + :one",
            )

    def read(self, targets: Iterable[Target], *, to_merge: bool = False) -> dict[Target, StateRecord]:
        """The records of the targets, eventually consistent; targets without a record are left out.

        With `to_merge` consistent and of every target, for `observe`.
        """
        records = {}
        for batch in batched(dict.fromkeys(targets), MAX_BATCH_KEYS, strict=False):
            found = {target_of_key(item): item for item in self._batch_get(batch, consistent=to_merge)}
            for target in batch:
                item = found.get(target)
                record = self._record(target, item)
                if to_merge or (item and self._table.is_alive(item) and record.observations):
                    records[target] = record
        return records

    def room(
        self, app_id: str, room_id: str, after: str | None, *, to_merge: bool = False, most: int = PAGE_ITEMS
    ) -> Page[StateRecord]:
        """A page of the records of a room's users, in the order of their ids; with `to_merge` as `read`."""
        items, next_key = self._table.query(partition(app_id, room_id), after, consistent=to_merge, most=most)
        records = [self._record(target_of(item), item) for item in items if to_merge or self._table.is_alive(item)]
        return Page([record for record in records if to_merge or record.observations], next_key)

    def _merge(
        self,
        record: StateRecord,
        observations: Observations,
        *,
        delivers: bool,
        is_recheck: bool = False,
        has_waits: bool = False,
    ) -> Merge:
        """Merge and write, again with the stored record each time that others have written meanwhile."""
        for tries in range(MAX_TRIES):
            now_ms = self._clock.now_ms()
            merge = record.merged(observations, now_ms)
            # The first record may be an older one that this instance kept: only the write shows what is stored.
            if tries and merge.is_repeat and not (is_recheck or has_waits):
                return merge
            recheck_at_ms = 0 if is_recheck else record.recheck_at_ms
            # A recheck that came too soon after an event, for which it was not meant, settles nothing.
            needs_recheck = merge.needs_recheck or (is_recheck and merge.after.state.is_contradicted)
            if needs_recheck and self._recheck_after_ms and not recheck_at_ms:
                recheck_at_ms = now_ms + self._recheck_after_ms
            after = replace(
                merge.after,
                revision=record.revision + 1,
                recheck_at_ms=recheck_at_ms,
                has_waits=record.has_waits or has_waits,
            )
            try:
                self._put(after, delivers=delivers)
            except ConditionFailed as failed:
                record = self._record(record.target, failed.item)
                if tries:
                    # Many write this record at once.
                    self._clock.sleep(self._clock.jitter(0, BACKOFF_SECONDS))
            else:
                return Merge(record, after)
        raise unavailable("others wrote the same state each time")

    def _put(self, record: StateRecord, *, delivers: bool) -> None:
        is_first = record.revision == 1
        condition = "attribute_not_exists(revision)" if is_first else "revision = :revision"
        values = {} if is_first else {":revision": record.revision - 1}
        self._table.write("put_item", condition, values, Item=self._item(record, delivers=delivers))
        self._kept.keep(record, self._expires_at())

    def _item(self, record: StateRecord, *, delivers: bool) -> Item:
        after_ms: int | None = None
        if record.is_undelivered:
            after_ms = self._clock.now_ms() + (DELIVERY_SECONDS * 1000 if delivers else 0)
        elif record.recheck_at_ms:
            after_ms = _late_ms(record)
        return item_of(record, self._expires_at(), after_ms)

    def _record(self, target: Target, item: Item | None) -> StateRecord:
        if not item:
            return StateRecord(target, skew_ms=self._skew_ms)
        record = record_of(target, item, self._skew_ms)
        return record if self._table.is_alive(item) else record.forgotten()

    def _batch_get(self, targets: Iterable[Target], *, consistent: bool) -> Iterator[Item]:
        keys = [key(target) for target in targets]
        return self._table.batch(
            "batch_get_item", keys, "UnprocessedKeys", lambda keys: {"Keys": keys, "ConsistentRead": consistent}
        )

    def _room_end(self, target: Target) -> Mark | None:
        item = self._table.get(room_key(target.app_id, target.room_id))
        return Mark(int(item["at_ms"]["N"]), int(item["seen_ms"]["N"])) if item else None

    def _expires_at(self) -> int:
        return int(self._clock.now()) + STATE_LIFE_SECONDS


def _late_ms(record: StateRecord) -> int:
    """When a recheck that was not carried out counts as lost."""
    return record.recheck_at_ms + RECHECK_LATE_SECONDS * 1000
