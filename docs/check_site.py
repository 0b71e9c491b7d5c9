"""Check a built site: every link, picture and anchor leads somewhere, and no page loads anything from another host.

python docs/check_site.py build/site          # prints what is wrong, and exits with 1 where something is
"""

from __future__ import annotations

import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Element -> the attribute that makes a browser load what it names, without a click.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
# Links of <link> that are no files to load.
NAMING = {"canonical", "prev", "next", "alternate"}


class Page(HTMLParser):
    """The ids, links and loaded files of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.ids.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and not NAMING & set(values.get("rel", "").split()):
            self.loaded.append(values[LOADED[tag]])


def parsed(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def target(path: Path, link: str, site: Path) -> Path:
    """The file that a link of a page leads to."""
    address = unquote(urlsplit(link).path)
    # The page of errors is served at any depth, so its addresses begin with those of the whole site.
    address = address.removeprefix(urlsplit(os.environ.get("ARCHPORT_SITE", "")).path.rstrip("/"))
    file = site / address.lstrip("/") if address.startswith("/") else path.parent / address if address else path
    return (file / "index.html" if file.is_dir() else file).resolve()


def problems(site: Path) -> list[str]:
    """What is wrong with a site, each with the page it is on."""
    pages = {path.resolve(): parsed(path) for path in sorted(site.rglob("*.html"))}
    wrong = [f"{site} holds no page"] if not pages else []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        wrong += [f"{where} loads {link}" for link in page.loaded if urlsplit(link).netloc]
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            file = target(path, link, site)
            if not file.exists():
                wrong.append(f"{where} leads to {link}, which is not there")
            elif parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].ids:
                wrong.append(f"{where} leads to {link}, which has no such anchor")
    return wrong


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(wrong) or f"{sys.argv[1]}: every link leads somewhere, nothing is loaded from elsewhere")
    sys.exit(bool(wrong))
