"""Whether every link within the built site leads somewhere: python .ci/site_links.py site.

Nor may a page fetch from elsewhere what its elements and style sheets name: scripts, fonts, styles,
pictures.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

FETCHED = {
    **dict.fromkeys(("script", "img", "iframe", "video", "audio", "source", "embed"), "src"),
    "link": "href",
    "object": "data",
}
"""What a browser loads by itself."""

ELSEWHERE = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^\s\"')]*")
"""What style sheets load."""


class Page(HTMLParser):
    """The places of a page, and where it leads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[tuple[str, bool]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what this one names, leads to or loads."""
        values = {name: value for name, value in attrs if value}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        by = FETCHED.get(tag, "href" if tag == "a" else None)
        canonical = values.get("rel") in {"canonical", "index", "search", "next", "prev"}
        if by in values and not canonical:
            self.links.append((values[by], tag != "a"))


def wrong(root: Path) -> list[str]:
    """What is wrong, a line each."""
    paths = (path for path in root.rglob("*.html") if "_static" not in path.parts)
    pages = {path: Page(path) for path in paths}  # there are templates of the theme's, too
    assert pages, f"{root} holds no page"
    found: list[str] = []
    for path, page in pages.items():
        for link, fetched in page.links:
            address, place = urldefrag(link)
            if "://" in address or address.startswith(("mailto:", "data:")):
                if fetched and not address.startswith("data:"):
                    found.append(f"{path.relative_to(root)} fetches {link}")
                continue
            target = path.parent / unquote(address.partition("?")[0]) if address else path
            target = (target / "index.html" if target.is_dir() else target).resolve()
            known = pages.get(target)
            if not target.exists() or (place and known and unquote(place) not in known.places):
                found.append(f"{path.relative_to(root)} leads to {link}")
    for sheet in [*root.rglob("*.css"), *pages]:
        named = ELSEWHERE.findall(sheet.read_text())
        found += [f"{sheet.relative_to(root)} fetches {each}" for each in named]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(wrong(Path(sys.argv[1]).resolve())) or 0)
