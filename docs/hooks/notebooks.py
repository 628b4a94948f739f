"""A hook of MkDocs: each notebook below docs/ becomes a page of Markdown, with the outputs that are stored in it; a link that shows a
file's name shows the title of its page."""

from __future__ import annotations

import base64
import json
import posixpath
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\([^)\s:]+)\.ipynb\b")
NAME = re.compile(r"\[[\w/]+\.(?:md|ipynb)\]\((?P<place>[^)\s:#]+)(?P<anchor>[^)\s]*)\)")  # [records.md](../records.md#columns)


def titled(text: str, page: Page, files: Files) -> str:
    """Links that show the name of a page's file with the page's title in the navigation; in a repository the name says more."""

    def link_of(link: re.Match[str]) -> str:
        target = files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link["place"])))
        title = target and target.page and target.page.title
        return f"[{title}]({link['place']}{link['anchor']})" if title else link[0]

    return NAME.sub(link_of, text)


def to_pages(text: str) -> str:
    """Links to notebooks as links to their pages."""
    return LINK.sub(r"\1.md", text)


def output_of(output: dict[str, Any]) -> str:
    """An output as Markdown: a picture where there is one, a table of pandas as HTML, else its text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f'<img alt="output" src="data:image/png;base64,{base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()}">'
    if "text/html" in data:
        return re.sub(r"<style scoped>.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
    return f"```text\n{''.join(data['text/plain']).rstrip()}\n```"


def page_of(notebook: dict[str, Any], name: str) -> str:
    """The Markdown of a notebook, and a link to download it."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(to_pages(source) if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [output_of(output) for output in cell.get("outputs", [])]
    return "\n\n".join([*parts, f"[Download this notebook]({name})"]) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = page_of(json.loads(file.content_string), file.src_uri.rpartition("/")[2])
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=page))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = json.loads(json.dumps(config.nav).replace('.ipynb"', '.md"'))
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return titled(markdown if page.file.generated_by else to_pages(markdown), page, files)
