"""A page that we wrote, as a browser would take it apart."""

from html.parser import HTMLParser

VOID = {"meta", "img", "link", "br", "hr"}
"""Elements that are never closed."""


class Page(HTMLParser):
    """The elements of a page with their attributes, its tables' cells, and all of its text."""

    def __init__(self, text: str) -> None:
        """Fails if an element is closed that was not the last one opened."""
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    @property
    def sources(self) -> list[str]:
        """Addresses that the page refers to."""
        return [str(value) for name, value in self.attributes if name in {"src", "href"}]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in {"td", "th"} and data.strip():
            self.cells.append(data)
