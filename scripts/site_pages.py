"""Pages of the site that are not in docs/: its home, lists of folders, and source files that pages link to.

MkDocs runs these hooks (mkdocs.yml). Files outside of docs/ have no address on the site: each that a page
links to becomes a page of its own, under source/, so that all links work wherever the site is.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
HOME = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
LISTED = {"decisions": "Decisions", "results": "Results"}
"""Folders of docs/ without a page of their own: its heading."""
LINK = re.compile(r"\]\((?!https?:|mailto:|data:|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the home page, and a page for each source file that a page links to."""
    for source, page in HOME.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for folder, heading in LISTED.items():
        page = f"{folder}/README.md"
        files.append(
            File.generated(config, page, content=_list_of(ROOT / "docs" / folder, heading))
        )
    wanted = {
        target
        for file in files.documentation_pages()
        for target, _ in _links(file.content_string, _folder(file.src_uri))
        if _is_source(target)
    }
    for target in sorted(wanted):
        files.append(File.generated(config, _source_page(target), content=_shown(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links that leave docs/ to the pages made for them."""
    del config, files
    folder = _folder(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        return f"]({posixpath.relpath(_address(target), here or '.')}{match[2] or ''})"

    parts = FENCE.split(markdown)  # links in code blocks stay
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def _folder(page: str) -> str:
    """The folder of the repository from which the links of a page are resolved."""
    if page in HOME.values() or page.startswith("source/"):
        return "" if page in HOME.values() else posixpath.dirname(page.removeprefix("source/"))
    return posixpath.join("docs", posixpath.dirname(page))


def _list_of(folder: Path, heading: str) -> str:
    """Return a page with a link to each file of a folder, by its heading or else its name."""
    lines = list[str]()
    for path in sorted(folder.iterdir()):
        first = path.read_text().partition("\n")[0] if path.suffix == ".md" else ""
        lines.append(f"- [{first.removeprefix('# ') or path.name}]({path.name})")
    return "\n".join([f"# {heading}", "", *lines, ""])


def _links(text: str, folder: str) -> list[tuple[str, str]]:
    prose = FENCE.sub("", text)
    return [
        (posixpath.normpath(posixpath.join(folder, match[1])), match[2] or "")
        for match in LINK.finditer(prose)
    ]


def _is_source(target: str) -> bool:
    """Whether a file of the repository is neither in docs/ nor one of the pages of `HOME`."""
    return not target.startswith("docs/") and target not in HOME and (ROOT / target).is_file()


def _source_page(target: str) -> str:
    return f"source/{target}" if target.endswith(".md") else f"source/{target}.md"


def _address(target: str) -> str:
    """Where a file of the repository is on the site; unknown ones stay, and MkDocs warns."""
    if target in HOME:
        return HOME[target]
    if _is_source(target):
        return _source_page(target)
    if (ROOT / target).is_dir():
        target = posixpath.join(target, "README.md")
    return target.removeprefix("docs/")


def _shown(target: str) -> str:
    text = (ROOT / target).read_text()
    if target.endswith(".md"):
        return text
    if target.endswith(".ipynb"):
        return _cells(text)
    kind = Path(target).suffix.removeprefix(".") or "text"
    return f"# {target}\n\n````{kind}\n{text}````\n"


def _cells(notebook: str) -> str:
    """Return a notebook as Markdown: its text, its code, and what the code printed and drew."""
    shown = list[str]()
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            shown.append(text)
            continue
        shown.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                shown.append(f"![](data:image/png;base64,{data['image/png'].strip()})")
            else:
                text = "".join(output.get("text") or data.get("text/plain", ""))
                shown.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(shown) + "\n"
