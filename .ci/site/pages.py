"""Pages of the site that are not in docs/: README, changelog, examples, experiments, reference."""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
#: File of the repository -> page of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples/index.md",
    **{f"examples/{p.name}": f"examples/{p.stem}.md" for p in (ROOT / "examples").glob("*.py")},
    **{
        f"experiments/{p.parent.name}/README.md": f"experiments/{p.parent.name}.md"
        for p in (ROOT / "experiments").glob("*/README.md")
    },
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)]*)?\)")
#: Packages whose face is a page of the reference, beside nni_gconv itself.
FACES = ("artefact", "callbacks.session", "experiment", "groupconv.partition", "groupconv.search",
         "pruning", "pruning.criteria", "report", "shrinking", "training.data", "training.zoo",
         "tuner", "errors")  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".py"):
            text = _script(source, text)
        files.append(File.generated(config, page, content=_relinked(text, source, page)))
    for picture in (ROOT / "experiments").glob("*/*.png"):
        place = str(picture.relative_to(ROOT))
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    shipped = sorted(p for p in PAGES.values() if p.startswith("experiments/"))
    lines = [f"- [{Path(page).stem}]({Path(page).name})" for page in shipped]
    text = "\n".join(["# Experiments that are shipped", "", *lines])
    files.append(File.generated(config, "experiments/index.md", content=text))
    for page, content in reference().items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links of docs/ that leave it lead to the pages made here."""
    if page.file.generated_by is not None:
        return markdown
    return _relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def _script(source: str, text: str) -> str:
    """Show a script: its docstring is the heading."""
    title = (ast.get_docstring(ast.parse(text)) or source).splitlines()[0]
    return f"# {Path(source).stem}\n\n{title}\n\n```python\n{text}```\n"


def _relinked(text: str, source: str, page: str) -> str:
    """Rewrite links: to pages where there is one, to plain text where a file is not on the site."""

    def link(match: re.Match) -> str:
        mark, words, target, anchor = (part or "" for part in match.groups())
        if not target or "://" in target:
            return match.group(0)
        try:
            place = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT)
        except ValueError:
            return words
        found = PAGES.get(str(place))
        if found is None and place.parts[0] == "docs":
            found = str(place.relative_to("docs"))
        if found is None and place.suffix == ".png":
            found = str(place)
        if found is None:
            return f"{words} (`{place}`)"
        up = "../" * (len(Path(page).parts) - 1)
        return f"{mark}[{words}]({up}{found}{anchor})"

    return _LINK.sub(link, text)


def reference() -> dict[str, str]:
    """Pages of the reference: every public name, a page for each package that users import from."""
    pages = {}
    index = ["# Reference", "", "Every public name of `nni_gconv`:", ""]
    for name in sorted(_public(ROOT / "nni_gconv" / "__init__.py"), key=str.lower):
        pages[f"reference/{name}.md"] = f"# {name}\n\n::: nni_gconv.{name}\n"
        index.append(f"- [{name}]({name}.md)")
    index += ["", "And by package:", ""]
    for face in FACES:
        names = sorted(_public(_source(face)), key=str.lower)
        body = "\n".join(f"::: nni_gconv.{face}.{name}\n" for name in names)
        text = f"# nni_gconv.{face}\n\n{body or f'::: nni_gconv.{face}'}\n"
        pages[f"reference/packages/{face}.md"] = text
        index.append(f"- [nni_gconv.{face}](packages/{face}.md)")
    pages["reference/index.md"] = "\n".join(index) + "\n"
    return pages


def _source(face: str) -> Path:
    path = ROOT / "nni_gconv" / face.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _public(path: Path) -> list[str]:
    """Names in the ``__all__`` of a file that are more than constants of a version."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if any(isinstance(n, ast.Name) and n.id == "__all__" for n in names):
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    return []
