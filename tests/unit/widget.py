"""What a CloudWatch dashboard makes of a custom widget's HTML, and its rules for it."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

TAGS = {
    *("b", "bdi", "button", "caption", "cwdb-action", "div", "form", "h2", "input", "label", "meter", "p", "span"),
    *("style", "table", "tbody", "td", "th", "thead", "tr"),
}
ATTRIBUTES = {
    *("action", "class", "endpoint", "max", "maxlength", "min", "name", "scope", "title", "type", "value"),
}
VOID = {"input"}
# Lambda's limit of an answer is 6 MB; a page stays far below it.
MAX_BYTES = 1_000_000


class Widget(HTMLParser):
    """The HTML, checked: no script, nothing external, well-formed, and each action right after its button."""

    def __init__(self, html: str) -> None:
        super().__init__()
        assert len(html.encode()) < MAX_BYTES
        self.buttons: dict[str, list[dict[str, Any]]] = {}
        # By room and user: the texts of the cells.
        self.cells: dict[tuple[str, str], list[str]] = {}
        self.titles: list[str] = []
        self.lines: list[str] = []
        self.typed: str | None = None
        self.classes: list[str] = []
        self._open: list[str] = []
        self._texts: list[str] = []
        self._last = self._label = self._room = self._user = ""
        self.feed(html)
        self.close()
        assert self._open == []

    @property
    def rooms(self) -> list[str]:
        """The names of the rooms, in their order."""
        return list(dict.fromkeys(room for room, _ in self.cells))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag in TAGS
        assert values.keys() <= ATTRIBUTES
        assert len(values) == len(attrs)
        if tag == "cwdb-action":
            assert self._last == "/button"
            assert values["action"] == "call"
            assert str(values["endpoint"]).startswith("arn:aws:lambda:")
        if tag == "input":
            self.typed = values["value"]
        if tag in {"div", "tr"}:
            self.classes.append(values.get("class") or "")
        self.titles += filter(None, [values.get("title")])
        self._last = tag
        if tag not in VOID:
            self._open.append(tag)
            self._texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        text, self._last = self._texts.pop(), f"/{tag}"
        match tag:
            case "style":
                assert not {"url", "@import", "expression", "<"} & set(text.replace("(", " ").split())
            case "button":
                self._label = text
            case "cwdb-action":
                self.buttons.setdefault(self._label, []).append(json.loads(text))
            case "bdi" if "caption" in self._open:
                self._room = text
            case "bdi" if "th" in self._open:
                self._user = text
            case "th" if "tbody" in self._open:
                self.cells[self._room, self._user] = [text]
            case "td":
                self.cells[self._room, self._user].append(text)
            case "p":
                self.lines.append(text)
        if self._texts and tag not in {"button", "cwdb-action", "style"}:
            self._texts[-1] += text

    def handle_data(self, data: str) -> None:
        if self._texts:
            self._texts[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    def of(self, room: str, user: str) -> list[str]:
        """What stands beside a user: the four media and presence."""
        return self.cells[room, user][1:6]

    def line(self, beginning: str) -> str:
        """The line that begins so."""
        (found,) = (line for line in self.lines if line.startswith(beginning))
        return found


def pages(read: Any, event: dict[str, Any], button: str = "Next page") -> Iterator[Widget]:
    """A page and those that its button leads to."""
    while True:
        widget = Widget(read(event))
        yield widget
        if button not in widget.buttons:
            return
        (event,) = widget.buttons[button]
