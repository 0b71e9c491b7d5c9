"""What the site shows besides docs/: the repository's own pages, and links that lead out of docs/.

Loaded by MkDocs (mkdocs.yml). Pages of the repository keep their place and become pages of the site; a link to a file
that is no page leads into the repository where ARCHPORT_REPOSITORY names one, and is the file's path as text elsewhere.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

# File of the repository -> page of the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/LOG.md": "benchmark-log.md",
    "examples/third_party/README.md": "outside-plugins.md",
}
# What a link to it means on the site.
ALSO = {"README.md": "index.md"}
SOURCES = {page: source for source, page in PAGES.items()}
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
FILE_NAME = re.compile(r"[\w/.-]+\.md")
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Put the pages of a folder into the navigation in its place, and pages that nobody listed at the end."""
    root = Path(config.docs_dir)
    listed: set[str] = set(PAGES.values())
    for section in config.nav:
        for title, entries in section.items():
            if isinstance(entries, list):
                section[title] = [opened(entry, root) for entry in entries]
            listed |= pages_of(section[title])
    if more := sorted(page for path in root.rglob("*.md") if (page := path.relative_to(root).as_posix()) not in listed):
        config.nav.append({"More": more})
    return config


def pages_of(entry: Any) -> set[str]:
    """The pages that an entry of the navigation leads to."""
    if isinstance(entry, str):
        return {entry}
    inner = entry if isinstance(entry, list) else list(entry.values())
    return {page for each in inner for page in pages_of(each)}


def opened(entry: Any, root: Path) -> Any:
    """An entry of the navigation, with the pages of the folder that it may name."""
    if isinstance(entry, dict):
        ((title, target),) = entry.items()
        if isinstance(target, str) and target.endswith("/"):
            return {title: sorted(page.relative_to(root).as_posix() for page in (root / target).glob("*.md"))}
    return entry


def on_files(files: Any, config: Any) -> Any:
    """Add the repository's pages."""
    # Here, so that tests can read the rest without MkDocs.
    from mkdocs.structure.files import File

    root = posixpath.dirname(config.config_file_path)
    for source, page in PAGES.items():
        with open(posixpath.join(root, source), encoding="utf-8") as file:
            files.append(File.generated(config, page, content=file.read()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links that lead out of docs/, in text alone, into what they are on the site."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    repository = (config.repo_url or "").rstrip("/")

    titles = {file.src_uri: title(file) for file in files.documentation_pages()}

    def turned(match: re.Match[str]) -> str:
        return link(match["text"], match["target"], source, page.file.src_uri, repository, titles)

    pieces = FENCE.split(markdown)
    return "".join(piece if piece.startswith("```") else LINK.sub(turned, piece) for piece in pieces)


def title(file: Any) -> str:
    """What a page calls itself in its first line."""
    return file.content_string.partition("\n")[0].removeprefix("# ")


def link(text: str, target: str, source: str, page: str, repository: str, titles: dict[str, str]) -> str:
    """A link of a file of the repository as the site has it; one that is called by its file gets the page's title."""
    path, hash_mark, anchor = target.partition("#")
    if "://" in target or not path:
        return f"[{text}]({target})"
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    there = PAGES.get(file) or ALSO.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
    if there is not None:
        shown = titles.get(there, text) if FILE_NAME.fullmatch(text) else text
        return f"[{shown}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{hash_mark}{anchor})"
    if repository:
        return f"[{text}]({repository}/blob/main/{file})"
    return text if file in text else f"{text} (`{file}`)"
