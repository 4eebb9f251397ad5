"""Write a page of documentation for each public module of sdlearn, grouped as the design is."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Of each group: its heading, and a module's file or a folder, with the chapter that explains it.
GROUPS: dict[str, dict[str, str]] = {
    "The stages": {
        "pipeline": "00",
        "images": "02",
        "latents": "02",
        "text": "03",
        "noise": "05",
        "unet": "06",
        "attention": "07",
        "schedulers": "08",
        "sampling": "09",
    },
    "Editing": {"editing": "12"},
    "Fine-tuning": {"finetuning": "14"},
    "The small model": {"postcards": "11", "training": "11"},
    "Figures, and what is checked": {"show": "00", "exercises": "00"},
}
# Chapters of modules in a folder, where it is not the folder's.
CHAPTER_OF = {
    "editing.inpainting": "13",
    "editing.prompt_to_prompt": "16",
    "editing.held_attention": "16",
    "editing.inversion": "16",
    "finetuning.dreambooth": "15",
    "training.distillation": "17",
    "training.control": "17",
}


def modules_in(name: str) -> list[str]:
    """Return the public modules of a folder of sdlearn, or the module itself.

    Left out are commands, and the checkers of single chapters, which nobody calls by name.
    """
    folder = ROOT / "sdlearn" / name
    if not folder.is_dir():
        return [name]
    files = sorted(file for file in folder.glob("[a-z]*.py") if documented(file))
    return [f"{name}.{file.stem}" for file in files if not file.stem.startswith("chapter")]


def documented(file: Path) -> bool:
    """Say whether a module has a public function or class."""
    tree = ast.parse(file.read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(each, kinds) and not each.name.startswith("_") for each in tree.body)


def summary(name: str) -> str:
    """Return the first sentence of a module's docstring."""
    path = ROOT / "sdlearn" / Path(*name.split("."))
    tree = ast.parse(path.with_suffix(".py").read_text("utf-8"))
    return (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")


def page(name: str, chapter: str, title: str) -> str:
    """Return a module's page. title: of the chapter that explains it."""
    heading = f"sdlearn.{name}"
    return "\n".join(
        [
            f"{heading}\n{'=' * len(heading)}\n",
            f"Explained in chapter :doc:`{chapter} <{title}>`.\n",
            f".. automodule:: sdlearn.{name}",
            "   :members:",
            "   :member-order: bysource",
            "",
        ]
    )


def api_pages(chapters: dict[str, str]) -> dict[str, str]:
    """Return name and text of every page. chapters: the files of the chapters by number."""
    pages = {}
    index = ["The library", "===========", "", INTRODUCTION, ""]
    for heading, members in GROUPS.items():
        index += [heading, "-" * len(heading), "", ".. toctree::", "   :hidden:", ""]
        names = [(each, members[name]) for name in members for each in modules_in(name)]
        index += [f"   {each} <{each}>" for each, _ in names]
        index += ["", ".. list-table::", "   :widths: 30 60 10", "   :header-rows: 1", ""]
        index += ["   * - module", "     - holds", "     - chapter"]
        for each, usual in names:
            number = CHAPTER_OF.get(each, usual)
            link = f"/chapters/{chapters[number]}"
            index += [f"   * - :doc:`{each}`", f"     - {summary(each)}"]
            index += [f"     - :doc:`{number} <{link}>`"]
            pages[each] = page(each, number, link)
        index.append("")
    return {"index": "\n".join(index) + "\n", **pages}


INTRODUCTION = """\
One stage is one module is one chapter, and every function takes the pipeline first. What is used
most can be had from ``sdlearn`` itself::

    import sdlearn

    pipe = sdlearn.load()
    trace = sdlearn.text_to_image(pipe, "an orange fox in the snow at night")
    trace.image

The names of arguments are diffusers' own where diffusers has one."""
