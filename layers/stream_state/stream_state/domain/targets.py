"""Targets: a user in a room of an app, or a whole room; and the four media that a user can publish."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

PRESENT = "present"


class Medium(StrEnum):
    """One of the four streams that a user can publish."""

    AUDIO = "audio"
    VIDEO = "video"
    SCREEN_AUDIO = "screen_audio"
    SCREEN_VIDEO = "screen_video"


# By the vendor's names, such as ScreenAudio.
MEDIA_TYPES = {medium.title().replace("_", ""): medium for medium in Medium}


@dataclass(frozen=True, slots=True, order=True)
class Room:
    """A room of an app; as a target it stands for all of its users."""

    app_id: str
    room_id: str

    def as_dict(self) -> dict[str, str]:
        """The two ids by name."""
        return {"app_id": self.app_id, "room_id": self.room_id}

    def digest(self, *more: object) -> str:
        """The digest of a target with an empty user id, which no user has."""
        return Target(self.app_id, self.room_id, "").digest(*more)


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A user in a room of an app."""

    app_id: str
    room_id: str
    user_id: str

    @property
    def room(self) -> Room:
        """The room that the user is in."""
        return Room(self.app_id, self.room_id)

    def as_dict(self) -> dict[str, str]:
        """The three ids by name."""
        return {"app_id": self.app_id, "room_id": self.room_id, "user_id": self.user_id}

    def digest(self, *more: object) -> str:
        """SHA-256 hex of the ids and of `more`; no id holds the line feed that joins them."""
        text = "\n".join((self.app_id, self.room_id, self.user_id, *map(str, more)))
        return hashlib.sha256(text.encode()).hexdigest()


def sort_key(target: Target | Room) -> tuple[str, ...]:
    """The order in which one presence call can serve a room and several of its users: each room, then its users."""
    return tuple(target.as_dict().values())
