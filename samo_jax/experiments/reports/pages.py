"""Pages: reports in Markdown, and in HTML with the pictures inside."""

import base64
import html
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from string import Template
from typing import Any

from markdown_it import MarkdownIt

_HTML = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ccc; white-space: nowrap }
pre { background: #f3f3f3; padding: 0.7rem; overflow-x: auto }
img { max-width: 100% }
</style>
$body</html>
""")


def write_page(folder: Path, title: str, text: str, pictures: Collection[str]) -> None:
    """Write `report.md` and `report.html`.

    Args:
        folder: folder of the files.
        title: title, without a line break.
        text: text in Markdown; what others have named as `tables.literal` text.
        pictures: the files in the folder that the text may show.
    """
    page = f"# {title}\n\n{text}"
    (folder / "report.md").write_text(page)
    markdown = MarkdownIt("js-default")
    markdown.add_render_rule("image", _embedded)
    body = markdown.render(page, {"folder": folder, "pictures": pictures})
    (folder / "report.html").write_text(
        _HTML.substitute(title=html.escape(title), body=body)
    )


def built_block(built: Mapping[str, str]) -> str:
    """A block that says what each method's text has built.

    Args:
        built: the calls of the transformations, by text.
    """
    lines = [f"{text}\n    {call}" for text, call in built.items()]
    return "What the methods' texts have built:\n\n" + fenced("\n".join(lines), "text")


def fenced(text: str, language: str) -> str:
    """A block of code that nothing in its text ends.

    >>> print(fenced("a ``` b", "sh"))
    ````sh
    a ``` b
    ````
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _embedded(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    image = tokens[index]
    name = image.attrs["src"]
    if name not in env["pictures"]:
        return html.escape(image.content)
    picture = base64.b64encode((env["folder"] / name).read_bytes())
    image.attrSet("src", f"data:image/png;base64,{picture.decode()}")
    return renderer.image(tokens, index, options, env)
