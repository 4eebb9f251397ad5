"""Every exercise: the solution passes, and each known wrong answer fails with its own words."""

import copy
import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from pydoc import locate

import exercises as book
import nbformat
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from nbclient import NotebookClient

import sdlearn.noise
from sdlearn.exercises import NotYet, check, compare, exercise, predict, progress, quiz
from sdlearn.exercises.__main__ import main
from sdlearn.exercises.asking import questions
from sdlearn.exercises.assignments import assignments
from sdlearn.exercises.catalogue import chapters
from sdlearn.exercises.notes import seed_of

ALL = [exercise(name) for names in chapters().values() for name in names]
MISTAKES = [(one, mistake) for one in ALL for mistake in one.mistakes]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def freely(one):
    """An exercise in which an answer may call anything, even the reference."""
    return replace(one, out_of_reach=())


@pytest.mark.parametrize(
    ("one", "mistake"), MISTAKES, ids=lambda each: getattr(each, "name", None) or ""
)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(one, mistake):
    for seed in (0, 1, 2):
        with pytest.raises(NotYet) as error:
            freely(one).examine(mistake.answer, seed)
        assert str(error.value) == mistake.words


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_an_exercise_knows_three_mistakes_and_where_to_begin(one):
    def empty(*arguments):
        raise NotImplementedError

    assert len({mistake.words for mistake in one.mistakes}) == len(one.mistakes) >= 3
    assert one.difficulty in (1, 2, 3) and one.minutes <= 60
    with pytest.raises(NotYet, match="Begin here: "):
        one.examine(empty)
    with pytest.raises(NotYet, match="returns nothing"):
        one.examine(lambda *arguments: None)
    with pytest.raises(NotYet, match="without calling it"):
        one.examine(1.0)
    assert all(callable(locate(name)) for name in one.out_of_reach)


def test_a_chapter_has_a_warm_up_an_idea_and_a_challenge():
    for names in chapters().values():
        assert len(names) >= 3
        assert {exercise(name).difficulty for name in names} == {1, 2, 3}


def cut(x, alpha_bar):
    return alpha_bar.reshape(-1, *[1] * (x.ndim - 1))


def in_place(x_0, noise, alpha_bar):
    a = cut(x_0, alpha_bar)
    return x_0.mul_(a.sqrt()).add_((1 - a).sqrt() * noise)


def by_the_library(x_0, noise, alpha_bar):
    return add_noise(None, x_0, noise, torch.arange(len(x_0)))  # a name of the notebook's own


def by_diffusers(x_0, noise, alpha_bar):
    return DDPMScheduler().add_noise(x_0, noise, torch.arange(len(x_0)))


def fails(x_0, noise, alpha_bar):
    return x_0 @ noise[:, :, :2]


def wrong_shape(x_0, noise, alpha_bar):
    return (cut(x_0, alpha_bar).sqrt() * x_0)[0]


def doubled(x_0, noise, alpha_bar):
    return -2 * exercise("05.1").reference(x_0, noise, alpha_bar)


def not_a_tensor(x_0, noise, alpha_bar):
    return 3


add_noise = sdlearn.noise.add_noise


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (in_place, "changes what it is given"),
        (by_the_library, "calls sdlearn.noise.add_noise, which does the whole work"),
        (by_diffusers, "calls diffusers.DDPMScheduler.add_noise"),
        (fails, "case 1, .*tensor of 1 × 4 × 6 × 6.* ends in RuntimeError"),
        (wrong_shape, "you return a tensor of 4 × 6 × 6, a tensor of 1 × 4 × 6 × 6 is wanted"),
        (doubled, "it has -2 times the right size"),
        (not_a_tensor, "you return 3, a tensor of 1 × 4 × 6 × 6 is wanted"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)  # fmt: skip
def test_other_faults_are_named(answer, words):
    one = exercise("05.1")
    with pytest.raises(NotYet, match=words):
        (freely(one) if answer is doubled else one).examine(answer)
    assert add_noise is sdlearn.noise.add_noise  # put back


def test_a_nearly_right_answer_hears_how_many_cases_are_right():
    def for_small_batches(x_0, noise, alpha_bar):
        right = exercise("05.1").reference(x_0, noise, alpha_bar)
        return right if len(x_0) < 4 else right + 0.5

    with pytest.raises(NotYet, match="3 of 4 cases are right. Case 3.*off by 0.5 in the mean"):
        freely(exercise("05.1")).examine(for_small_batches)


def test_what_is_passed_and_predicted_is_kept_in_one_small_file(tmp_path, capsys):
    check("05.2", exercise("05.2").reference, student="Ada")
    with pytest.raises(NotYet, match="first: what do you expect"):
        compare("05.4", 0.5)
    with pytest.raises(NotYet, match="a sentence"):
        predict("05.4", 0.3, "so")
    predict("05.4", 0.3, because="half of the noise is there")
    predict("05.4", 0.9, because="I looked it up")
    compare("05.4", 0.51)
    said = capsys.readouterr().out
    assert "05.2 passed" in said and "noted: 0.3, which you said first" in said
    assert "you expected: 0.3, because half of the noise is there\nit is:        0.51" in said
    assert json.loads((tmp_path / "progress.json").read_text())["passed"] == ["05.2"]
    progress()
    assert "chapter 05  ○●○" in capsys.readouterr().out
    (tmp_path / "progress.json").write_text("torn")
    progress()
    assert "chapter 05  ○○○" in capsys.readouterr().out


def test_neighbours_get_cases_of_their_own():
    assert seed_of(None) == 0
    assert seed_of("Ada") == seed_of(" ada ") != seed_of("Grace")
    one, other = (exercise("05.2").cases(torch.Generator().manual_seed(seed_of(name)))
                  for name in ("Ada", "Grace"))  # fmt: skip
    assert [snr for _, snr in one] != [snr for _, snr in other]


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"chapter 05 has 05\.1, 05\.2, 05\.3"):
        check("05.9", print)
    with pytest.raises(ValueError, match="no exercises for '99.1'"):
        check("99.1", print)


SOURCES = sorted(book.SOURCES.glob("*.ipynb"))


def sources():
    """Each exercise's solution, and its empty stub, as code."""
    for path in SOURCES:
        current = ""
        for cell in nbformat.read(path, as_version=4).cells:
            kind, name = book.tag(cell)
            current = name if kind == "exercise" else current
            if kind == "answer":
                yield current, "from collections.abc import Callable\nimport torch\n" + cell.source


def function_of(code):
    space = {}
    exec(code, space)
    return [value for value in space.values() if callable(value) and value is not torch][-1]


@pytest.mark.parametrize(("name", "code"), sources(), ids=lambda each: each[:5])
def test_the_solution_passes_and_the_stub_does_not(name, code):
    for seed in (0, 1, 2**32 - 1):
        exercise(name).examine(function_of(book.solution_of(code)), seed)
    with pytest.raises(NotYet, match="nothing is written yet"):
        exercise(name).examine(function_of(book.SOLUTION.sub(book.EMPTY, code)))


def test_every_exercise_has_its_place_in_a_source():
    assert [name for name, _ in sources()] == [one.name for one in ALL]


def test_the_committed_exercises_are_what_their_sources_make(capsys):
    assert book.main(["--check"]) == 0, capsys.readouterr().out
    assert {path.name for path in book.READERS.glob("*.ipynb")} == {path.name for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_source_runs_from_its_first_cell_to_its_last(path, tmp_path):
    client = NotebookClient(
        nbformat.read(path, as_version=4), timeout=120, kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute()
    notes = json.loads((tmp_path / "progress.json").read_text())
    assert notes["passed"] == [name for name in chapters()[path.stem[:2]]]


def test_the_class_edition_hides_its_tests_and_its_solutions_in_marks(tmp_path):
    book.main(["--class", str(tmp_path), "--secret", "pi"])
    for path in SOURCES:
        made = nbformat.read(tmp_path / "source" / path.stem / path.name, as_version=4)
        about = [cell.metadata["nbgrader"] for cell in made.cells if cell.metadata]
        assert len({one["grade_id"] for one in about}) == len(about)
        graded = [cell for cell in made.cells if cell.metadata.get("nbgrader", {}).get("points")]
        hidden = [cell for cell in graded if "### BEGIN HIDDEN TESTS" in cell.source]
        assert len(hidden) == len(chapters()[path.stem[:2]])
        words = {re.search(r"student='(\w{16})'", cell.source)[1] for cell in hidden}
        assert len(words) == len(hidden) and "pi" not in words


def handed_in(answers):
    """A class's notebook of chapter 05, with these answers in it."""
    notebook = nbformat.read(book.READERS / "05-forward-noising.ipynb", as_version=4)
    empty = [c for c in notebook.cells if "raise NotImplementedError" in c.source]
    for cell, answer in zip(empty, answers):
        cell.source = answer or cell.source
    return nbformat.writes(notebook)


def test_a_zip_of_notebooks_is_graded_each_in_a_process_of_its_own(tmp_path, capsys):
    right = [book.solution_of(code) for name, code in sources() if name.startswith("05")]
    wrong = [right[0].replace("(1 - a).sqrt()", "(1 - a)"), *right[1:]]
    stuck = ["while True: pass"]
    forged = ["from sdlearn.exercises import Exercise\nExercise.examine = lambda *a: None"]
    online = ["import urllib.request as u\nu.urlopen('http://127.0.0.1:9')\n" + right[0]]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, answers in {"ada": right, "bob": wrong, "cyd": forged, "../eve": online}.items():
            archive.writestr(f"{name}.ipynb", handed_in(answers))
        archive.writestr("dan.ipynb", "torn")
    out = tmp_path / "grades"
    assert main(["grade", str(tmp_path / "all.zip"), "--out", str(out), "--secret", "pi"]) == 0
    table = list(csv.DictReader((out / "grades.csv").open(encoding="utf-8")))
    assert {row["notebook"]: row["points"] for row in table} == {
        "ada": "3", "bob": "2", "cyd": "0", "dan": "0", "../eve": "0",
    }  # fmt: skip
    assert "lacks its root" in (out / "bob.html").read_text(encoding="utf-8")
    assert "nothing is written yet" in (out / "cyd.html").read_text(encoding="utf-8")
    assert not (tmp_path / "eve.html").exists() and (out / "..-eve.html").exists()
    assert {row["of"] for row in table} == {"3", "0"}  # 0: not a notebook
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "fay.ipynb").write_text(handed_in(stuck), encoding="utf-8")
    main(["grade", str(tmp_path / "slow"), "--out", str(out), "--seconds", "8"])
    assert "stopped after 8 seconds" in (out / "fay.html").read_text(encoding="utf-8")
    assert main(["grade", str(tmp_path / "none")]) == 2
    assert "neither a folder nor a zip" in capsys.readouterr().err


QUIZZES = sorted(path.name[:2] for path in (book.SOURCES.parents[1] / "sdlearn").rglob("??.json"))


@pytest.mark.parametrize("chapter", QUIZZES)
def test_every_answer_of_a_quiz_explains_itself(chapter):
    asked = questions(chapter)
    assert len({question["question"] for question in asked}) == len(asked) == 5
    for question in asked:
        assert set(question) == {"question", "type", "answers"}
        answers = question["answers"]
        assert [one["correct"] for one in answers].count(True) == 1
        assert len({one["answer"] for one in answers}) == len(answers) >= 3
        assert all(len(one["feedback"].split()) >= 6 for one in answers)
    places = [[one["correct"] for one in question["answers"]].index(True) for question in asked]
    assert len(set(places)) >= 3, "the right answer is always in the same places"
    longest = [max(question["answers"], key=lambda one: len(one["answer"]))["correct"]
               for question in asked]  # fmt: skip
    assert sum(longest) <= 3, "the longest answer is the right one too often"


def test_quizzes_are_shown_and_missing_ones_are_named(capsys):
    assert set(QUIZZES) == set(chapters())
    quiz("05")
    with pytest.raises(ValueError, match="no quiz for '99'"):
        quiz("99")


def nbgrader(course, *command):
    """Run a command of nbgrader in a course's folder."""
    beside = Path(sys.executable).parent  # where alembic is, which nbgrader calls by its name
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
    call = [sys.executable, "-m", "nbgrader", *command]
    subprocess.run(call, cwd=course, env=environment, check=True, capture_output=True, timeout=300)


def test_a_class_of_three_is_graded_by_nbgrader(tmp_path):
    names = ("05-forward-noising", "08-the-scheduler-loop")
    book.main(["--class", str(tmp_path), "--secret", "pi"])
    config = 'c = get_config()\nc.CourseDirectory.course_id = "sd"\n'
    (tmp_path / "nbgrader_config.py").write_text(config, encoding="utf-8")
    for name in names:
        nbgrader(tmp_path, "generate_assignment", name)
        release = tmp_path / "release" / name / f"{name}.ipynb"
        source = nbformat.read(tmp_path / "source" / name / f"{name}.ipynb", as_version=4)
        given = nbformat.read(release, as_version=4)
        assert "BEGIN" not in release.read_text(encoding="utf-8")
        for who in ("ada", "bob", "cyd"):
            handed_in = copy.deepcopy(given)
            solved, empty = (
                [cell for cell in cells if cell.cell_type == "code" and mark in cell.source]
                for cells, mark in (
                    (source.cells, "### BEGIN SOLUTION"),
                    (handed_in.cells, "YOUR CODE HERE"),
                )
            )
            for cell, solution in zip(empty, solved):
                if who != "cyd":
                    cell.source = solution.source
            if who == "bob":  # a known mistake in the first exercise
                old, new = (
                    ("(1 - a).sqrt()", "(1 - a)") if name[:2] == "05" else ("/ a**0.5", "/ a")
                )
                empty[0].source = empty[0].source.replace(old, new)
            folder = tmp_path / "submitted" / who / name
            folder.mkdir(parents=True)
            nbformat.write(handed_in, folder / f"{name}.ipynb")
        nbgrader(tmp_path, "autograde", name)
        nbgrader(tmp_path, "generate_feedback", name)
    nbgrader(tmp_path, "export")
    table = list(csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8")))
    scores = {(row["assignment"][:2], row["student_id"]): float(row["score"]) for row in table}
    assert scores == {
        ("05", "ada"): 3, ("05", "bob"): 2, ("05", "cyd"): 0,
        ("08", "ada"): 5, ("08", "bob"): 4, ("08", "cyd"): 0,
    }  # fmt: skip
    (page,) = (tmp_path / "feedback" / "bob" / names[0]).glob("*.html")
    assert "lacks its root" in page.read_text(encoding="utf-8")


def test_neighbours_have_assignments_with_their_own_numbers(capsys):
    ada, again, grace, kept = (assignments(name, secret) for name, secret in (
        ("Ada", ""), (" ada", ""), ("Grace", ""), ("Ada", "pi")))  # fmt: skip
    assert ada == again and len(ada) == 5
    for other in (grace, kept):
        assert all(one.task != another.task for one, another in zip(ada[1:4], other[1:4]))
    assert main(["assignment", "Ada", "--answers"]) == 0
    printed = capsys.readouterr().out
    assert all(one.task in printed and one.answer in printed for one in ada)
    assert main(["assignment", " "]) == 2


def test_a_list_of_names_becomes_a_file_each(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Ada Lovelace\n\nGrace\n", encoding="utf-8")
    assert (
        main(["assignment", f"@{names}", "--secret", "pi", "--out", str(tmp_path / "tasks")]) == 0
    )
    written = {
        path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "tasks").iterdir()
    }
    assert written.keys() == {"Ada-Lovelace.txt", "Grace.txt"}
    assert all(one.task in written["Grace.txt"] for one in assignments("Grace", "pi"))


def test_the_answers_of_an_assignment_are_right():
    """Read off the task's own words, and worked out anew."""
    for name in ("Ada", "Grace", "Emmy"):
        tasks = assignments(name)
        lists = [json.loads(each) for each in re.findall(r"\[.*?\]", tasks[2].task)]
        g = float(re.search(r"scale is ([\d.]+)\.", tasks[2].task)[1])
        guided = [round(u + g * (c - u), 2) for u, c in zip(*lists)]
        assert tasks[2].answer.startswith(str(guided))
        x, noise = (json.loads(each) for each in re.findall(r"\[.*?\]", tasks[3].task))
        a, a_next = map(float, re.findall(r"(0\.\d+|1\.\d+)(?=[ .])", tasks[3].task)[-2:])
        scheduler = DDIMScheduler(set_alpha_to_one=False, clip_sample=False)
        scheduler.alphas_cumprod = torch.tensor([a_next, a])
        scheduler.num_inference_steps = scheduler.config.num_train_timesteps
        after = scheduler.step(torch.tensor(noise), 1, torch.tensor(x)).prev_sample
        said = json.loads(tasks[3].answer.partition(", x_0")[0])
        assert said == pytest.approx(after.tolist(), abs=0.011)
