"""``python -m sdlearn.exercises``: how far you are; ``… grade all.zip``: a class's notebooks."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from sdlearn.__main__ import exit_status
from sdlearn.exercises.assignments import assignments
from sdlearn.exercises.grading import SECONDS, grade
from sdlearn.exercises.notes import progress


def sheet(student: str, secret: str, answers: bool) -> str:
    """Return a student's five assignments as text."""
    lines = []
    for number, one in enumerate(assignments(student, secret), 1):
        lines += [f"{number}. {one.title}", f"   {one.task}"]
        if answers:
            lines.append(f"   → {one.answer}")
    return "\n".join(lines)


def hand_out(students: list[str], secret: str, answers: bool, out: Path | None) -> None:
    """Print the assignments of each student, or write a file for each into a folder."""
    students = [name for name in map(str.strip, students) if name] or [""]
    sheets = {name: sheet(name, secret, answers) for name in students}
    if out:
        out.mkdir(parents=True, exist_ok=True)
    for name, text in sheets.items():
        if out:
            file = re.sub(r"[^\w.-]+", "-", name) + ("-answers.txt" if answers else ".txt")
            (out / file).write_text(f"{name}\n\n{text}\n", encoding="utf-8")
        else:
            print(f"{name}\n{text}\n" if len(sheets) > 1 else text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    command = argparse.ArgumentParser(prog="python -m sdlearn.exercises", description=__doc__)
    kinds = command.add_subparsers(dest="kind")
    grading = kinds.add_parser("grade", help="grade notebooks, each in a process of its own")
    grading.add_argument("notebooks", type=Path, help="a zip file or a folder")
    grading.add_argument("--out", type=Path, default=Path("grades"), help="a folder (grades)")
    grading.add_argument("--secret", default="", help="a word that further cases are drawn from")
    grading.add_argument("--seconds", type=float, default=SECONDS, help=f"for each ({SECONDS})")
    about = "five assignments with a student's own numbers"
    own = kinds.add_parser("assignment", help=about, fromfile_prefix_chars="@")
    own.add_argument("student", nargs="+", help="a name; @FILE: one on each of its lines")
    own.add_argument("--out", type=Path, help="a folder for a file a student, instead of printing")
    own.add_argument("--answers", action="store_true", help="print the answers, too")
    own.add_argument("--secret", default="", help="a word that a teacher keeps")
    args = command.parse_args(arguments)
    if args.kind == "assignment":
        return exit_status(lambda: hand_out(args.student, args.secret, args.answers, args.out))
    if args.kind is None:
        return exit_status(progress)
    return exit_status(lambda: grade(args.notebooks, args.out, args.secret, args.seconds))


if __name__ == "__main__":
    sys.exit(main())
