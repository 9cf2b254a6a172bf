"""The HTML page of a report as a reader has it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from gala import report
from synthetic_run import SyntheticRun


class Page(HTMLParser):
    """A parsed report; raises for tags that are not closed in order."""

    _VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    @property
    def text(self) -> str:
        """What a reader sees, without style sheets."""
        joined = " ".join(data for tag, data in self.texts if tag != "style")
        return " ".join(joined.replace("\u202f", " ").split())

    def headings(self) -> list[str]:
        """The titles of plots and sections."""
        return [data for tag, data in self.texts if tag in ("h1", "h2", "h3")]

    def captions(self) -> dict[str, str]:
        """Figure title -> caption."""
        titles = [data for tag, data in self.texts if tag == "h3"]
        found = [data for tag, data in self.texts if tag == "figcaption"]
        return dict(zip(titles, found, strict=False))  # figures come before the other sections


def write(tmp_path: Path, *runs: SyntheticRun | Path) -> Page:
    directories = [run if isinstance(run, Path) else run.directory for run in runs]
    return Page(report.write(directories, tmp_path / "report.html"))


def assert_self_contained(page: Page) -> None:
    """Nothing is loaded or executed, and every inner reference has its one target."""
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "image"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}={value!r}>"
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith("#"), f"<{tag} {name}={value!r}>"
    assert "@import" not in page.source
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {value for _, attributes in page.tags for name, value in attributes.items() if name == "href"}
    used |= {f"#{part.split(')')[0]}" for part in page.source.split("url(#")[1:]}
    assert page.source.count("url(") == page.source.count("url(#")
    assert used <= {f"#{identity}" for identity in ids}
