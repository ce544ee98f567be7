"""Dead links, missing anchors and pictures without a description in the pages that were built.

    python docs/check_site.py docs/_build/html

Sphinx checks what it resolves itself; this looks at the pages as a browser gets them. Addresses of
other sites are left alone.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "img": "src", "link": "href", "script": "src", "source": "src"}


class Page(HTMLParser):
    """What a page links to, what can be linked to in it, and its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}
        self.undescribed: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found[name] or "" for name in ("id", "name") if name in found}
        link = found.get(LINKS.get(tag, ""))
        if link:
            self.links.append(link)
        source = found.get("src") or ""
        # The title of an example stands below its small picture: that one adds nothing.
        if tag == "img" and not (found.get("alt") or "").strip() and "_thumb." not in source:
            self.undescribed.append(source)


def faults(folder: Path) -> list[str]:
    """One line for each fault of the site in ``folder``."""
    paths = (path for path in folder.rglob("*.html") if "_static" not in path.parts)
    pages = {path.resolve(): Page(path) for path in paths}
    found = [] if pages else [f"{folder}: there are no pages"]
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        found += [f"{name}: no description of {source}" for source in page.undescribed]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name}: no such file: {link}")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: no such place: {link}")
    return sorted(set(found))


def main(arguments: list[str]) -> int:
    """Print all faults; the exit status says whether there are any."""
    found = faults(Path(arguments[0]))
    print(*found or ["Links and pictures: no faults."], sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
