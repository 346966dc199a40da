"""What the tests of the page look with: its elements, as a browser that is strict would have them."""

from __future__ import annotations

from html.parser import HTMLParser

# Source: HTML Living Standard, void elements.
VOID = {"meta", "img", "br", "hr", "input", "link"}
# What makes a browser ask for something, or run something.
ADDRESSES = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}
ACTIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "video", "audio", "svg"}


class Page(HTMLParser):
    """A page, read strictly.

    Attributes:
        text: All that is to be read, the elements taken away.
        elements: (name, attributes) of each.
        wrong: What is not as it should be.
    """

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text, self.elements, self.wrong = "", list[tuple[str, dict[str, str | None]]](), list[str]()
        self._open: list[str] = []
        self.feed(content)
        self.close()
        self.wrong += [f"<{name}> is not closed" for name in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ACTIVE:
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or (name in ADDRESSES and not str(value).startswith("data:image/")):
                self.wrong.append(f"<{tag} {name}={value!r}>")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.wrong.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        """Gives the attributes of all elements of a name."""
        return [attributes for tag, attributes in self.elements if tag == name]
