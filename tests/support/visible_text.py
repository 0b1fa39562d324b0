"""What a person reads in the HTML of an answer, in tests: without the bar of a code block, formulas as their source."""

from html.parser import HTMLParser

BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "td", "th", "pre", "hr", "div", "blockquote"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []  # "" for an element that is read, else why its text is not

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag in BLOCKS:
            self.parts.append("\n")
        if tag == "hr":
            return
        reason = "head" if ("data-ui", None) in attrs else tag if tag in ("math", "annotation") else ""
        self._open.append(reason)

    def handle_endtag(self, tag: str) -> None:
        if self._open:  # else a part of some HTML began within this element
            self._open.pop()
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if "head" in self._open or ("math" in self._open and "annotation" not in self._open):
            return
        self.parts.append(data)


def visible_text(html: str) -> str:
    reader = _read(html)
    return "\n".join(line for line in "".join(reader.parts).split("\n") if line.strip())


def tags_of(html: str) -> set[str]:
    return _read(html).tags


def attributes_of(html: str) -> list[tuple[str, str | None]]:
    return _read(html).attributes


def _read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader
