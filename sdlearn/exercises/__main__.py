"""``python -m sdlearn.exercises``: how far you are; ``… grade all.zip``: a class's notebooks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sdlearn.__main__ import exit_status
from sdlearn.exercises.assignments import assignments
from sdlearn.exercises.grading import SECONDS, grade
from sdlearn.exercises.notes import progress


def show_assignments(student: str, secret: str, answers: bool) -> None:
    """Print a student's five assignments."""
    for number, one in enumerate(assignments(student, secret), 1):
        print(f"{number}. {one.title}\n   {one.task}")
        if answers:
            print(f"   → {one.answer}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    command = argparse.ArgumentParser(prog="python -m sdlearn.exercises", description=__doc__)
    kinds = command.add_subparsers(dest="kind")
    grading = kinds.add_parser("grade", help="grade notebooks, each in a process of its own")
    grading.add_argument("notebooks", type=Path, help="a zip file or a folder")
    grading.add_argument("--out", type=Path, default=Path("grades"), help="a folder (grades)")
    grading.add_argument("--secret", default="", help="a word that further cases are drawn from")
    grading.add_argument("--seconds", type=float, default=SECONDS, help=f"for each ({SECONDS})")
    own = kinds.add_parser("assignment", help="five assignments with a student's own numbers")
    own.add_argument("student", help="a name")
    own.add_argument("--answers", action="store_true", help="print the answers, too")
    own.add_argument("--secret", default="", help="a word that a teacher keeps")
    args = command.parse_args(arguments)
    if args.kind == "assignment":
        return exit_status(lambda: show_assignments(args.student, args.secret, args.answers))
    if args.kind is None:
        return exit_status(progress)
    return exit_status(lambda: grade(args.notebooks, args.out, args.secret, args.seconds))


if __name__ == "__main__":
    sys.exit(main())
