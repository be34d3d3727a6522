"""A strict HTML parser; the standard library's accepts everything."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Document(HTMLParser):
    """Elements, attributes, ids and visible text of a page; raises on mismatched tags."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.cells: list[list[str]] = []
        assert page.startswith("<!DOCTYPE html>")
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    @property
    def text(self) -> str:
        """All visible text, with single spaces."""
        return " ".join(" ".join(self.words).replace("\xa0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
            if self.open[-1] in ("td", "th"):
                self.cells[-1][-1] += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")


def check_self_contained(page: str) -> Document:
    """Check that the page parses, loads nothing, runs nothing, and that ids are unique and references resolve."""
    document = Document(page)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base"} & set(document.tags)
    links = [value for _tag, name, value in document.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert all(link.startswith("#") for link in links)
    assert not [name for _tag, name, _value in document.attributes if name.startswith("on")]
    for outside in ("http:", "https:", "@import", "//"):
        assert outside not in page
    ids = [value for _tag, name, value in document.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "an id twice"
    clips = [value[5:-1] for _tag, name, value in document.attributes if name == "clip-path"]
    assert {link[1:] for link in links} | set(clips) <= set(ids)
    return document
