"Exercises: every stub, every solution, answers that are none, planted mistakes, the student's copy, what is solved."

import ast
import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from ae_course import checks, cli
from ae_course.base import BadArgument, UnknownName, cells_of
from ae_course.checks import Exercise, Markers, NotRight, NotSolved, agree, check, exercises, lessons, require

EXERCISES = [e for path in lessons().values() for e in exercises(path)]
CONSTANTS = (0, 1, 0.0, True, False, "", [], None, torch.zeros(3))
NO_ANSWERS = {"its first argument": lambda *a, **k: a[0]} | {
    f"always {value!r}": lambda *a, value=value, **k: value for value in CONSTANTS
}  # fmt: skip


@pytest.fixture(scope="module")
def spaces():
    "{lesson: the namespace its checks and answers may use}, made once."
    return {name: checks.namespace(lessons()[name]) for name in {e.lesson for e in EXERCISES}}


def answers_of(source, e, space):
    "The functions of an answer's cell, from a namespace of their own."
    space = dict(space)
    exec(source, space)
    return [space[name] for name in e.answers]


@pytest.mark.parametrize("e", EXERCISES, ids=lambda e: e.number)
def test_stub_solution_and_answers_that_are_none(e: Exercise, spaces, capsys):
    with pytest.raises(NotSolved) as stopped:
        check(e.number, *answers_of(e.stub, e, spaces[e.lesson]))
    assert f"Exercise {e.number} is not solved yet" in str(stopped.value) and e.hint in str(stopped.value)
    check(e.number, *answers_of(e.solution, e, spaces[e.lesson]))
    assert f"Exercise {e.number}: correct." in capsys.readouterr().out
    for name, answer in NO_ANSWERS.items():
        with contextlib.suppress(Exception):  # an answer of another form may stop in the check's own arithmetic
            check(e.number, *[answer] * len(e.answers))
            raise SystemExit(f"exercise {e.number} is passed by {name}")


def test_numbers_are_unique_and_the_main_lessons_have_three():
    numbers = [e.number for e in EXERCISES]
    assert len(set(numbers)) == len(numbers)
    for lesson in lessons():
        if lesson[:2] >= "10" and lesson[:2] < "90":
            assert sum(e.lesson == lesson for e in EXERCISES) >= 3, lesson
    assert all(int(e.number.partition(".")[0]) == int(e.lesson[:2]) for e in EXERCISES)


@pytest.mark.parametrize("path", lessons().values(), ids=lambda p: p.stem)
def test_the_copy_differs_in_its_exercises_alone_and_nothing_else_needs_an_answer(path):
    found, copy = exercises(path), json.loads(checks.student_copy(path))["cells"]
    mine = [("code" if c["cell_type"] == "code" else "markdown", "".join(c["source"])) for c in copy]
    changed = {e.answer_cell for e in found} | {e.text_cell for e in found}
    kept = [(kind, source) for i, (kind, source, tags) in enumerate(cells_of(path)) if "check" not in tags]
    assert len(mine) == len(kept)
    assert sum(a != b for a, b in zip(mine, kept)) == len(changed)
    for e in found:
        assert e.solution not in checks.student_copy(path) and e.words not in " ".join(checks.student_copy(path).split())
        own = (e.answer_cell, e.check_cell, e.call_cell)
        others = [s for i, (kind, s, _) in enumerate(cells_of(path)) if kind == "code" and i not in own]
        used = {node.id for s in others for node in ast.walk(ast.parse(s)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        assert not used & set(e.answers), f"{path.stem}: another cell uses {e.answers}, the answer of {e.number}; a copy would stop there"


# ---- planted mistakes: each gets the message made for it

def linear_error(centre=True, add=True, turn=False, reduce=lambda s: s.mean()):
    def answer(x, mean, e, d):
        m = mean if centre else 0
        coded = (x - m) @ (e if turn else e.T) @ (d if turn else d.T)
        return reduce((coded + (m if add else 0) - x).square())

    return answer


MISTAKES = [
    ("10.1", linear_error(reduce=lambda s: s.sum(1).mean()), "summed over the pixels"),  # sum for mean
    ("10.1", linear_error(reduce=lambda s: s.sum()), "summed over the pixels"),
    ("10.1", linear_error(reduce=lambda s: s.mean(1)), "One number is asked for"),  # wrong reduction
    ("10.1", linear_error(centre=False), "not centred"),
    ("10.1", linear_error(add=False), "not added again"),
    ("10.1", linear_error(turn=True), "transposed"),
    ("10.1", linear_error(reduce=lambda s: s.mean().sqrt()), "root"),
    ("10.2", lambda v, s: (int((v.cumsum(0) / v.sum() < s).sum()), torch.tensor(0.0)), "One component too few"),
    ("10.2", lambda v, s: (k := int((v.cumsum(0) / v.sum() < s).sum()) + 1, v[k:].sum()), "summed over the pixels"),
    ("10.3", lambda v, a: (a - 1) ** 2 * v[0] / len(v), "the encoder alone"),
    ("10.3", lambda v, a: (a**2 - 1) ** 2 * v[0], "sum over the pixels"),
    ("10.4", lambda v, k, g: float((g * v[k:].sum() / (v[k - 1] - v[k])).sqrt().asin()), "radians"),
    ("10.5", lambda c, v: (c / v[:, None], (c * v[:, None]).T), "divided by the variance"),
    ("10.5", lambda c, v: (c / v.sqrt()[:, None], c.T), "does not undo"),
    ("10.5", lambda c, v: (c.T, c), "got shapes"),
    ("1.1", lambda shape: (shape[1] * shape[2], shape[1] * shape[2], 1), "one channel"),
    ("1.2", lambda data: (data.sum(0), data.sum(0)), "sum"),
    ("1.2", lambda data: (data.median(0).values, data.median(0).values), "absolute"),
    ("2.1", lambda n, batch_size: (n % batch_size or batch_size) / batch_size, "turn the ratio"),
    ("5.1", lambda errors: (-10 * errors.mean().log10(), (-10 * errors.log10()).mean()), "wrong way"),
    ("5.1", lambda errors: ((-20 * errors.log10()).mean(), -20 * errors.mean().log10()), "factor 10"),
    ("90.1", lambda old, new: (old["parameters"] != new["parameters"], old["cells"] != new["cells"]), "words are no code"),
    ("4.3", lambda x: [x.T @ x / len(x), (x - x.mean(0)).T @ (x - x.mean(0)) / len(x), x @ x.T], "no mistake in it"),
]


@pytest.mark.parametrize(("number", "answer", "said"), MISTAKES)
def test_a_planted_mistake_gets_its_own_message(number, answer, said):
    with pytest.raises(NotRight, match=said) as wrong:
        check(number, answer)
    assert str(wrong.value).startswith(f"Exercise {number}: ")


# ---- comparing

AGREE = [
    (1.0, 1.0 + 1e-7), (True, True), (torch.ones(2, 3), np.ones((2, 3))), ([1, 2], (1, 2)), ("abc", "abc"), ({"a": 1.0}, {"a": 1.0}),
    (np.float32(2), 2), (torch.tensor(3.0, requires_grad=True), 3),
]  # fmt: skip
DIFFER = [
    (None, 1.0, "is None"), (torch.ones(3, 2), torch.ones(2, 3), "transposed"), (torch.ones(3), 1.0, r"shape \(3,\)"),
    (torch.tensor([1.0, float("nan")]), torch.ones(2), "1 of 2 values are NaN"),
    ("a", 1.0, "expected numbers"), (1.0, "a", "expected a text"),
    ([1], [1, 2], "length 1, expected list of length 2"), ({"b": 1}, {"a": 1}, r"keys \['a'\] are missing"), ((1, 5), (1, 2), r"f\[1\]"),
    ("a", "b", "not right"), (1j, 1.0, "got 1j"), (2.0, 1.0, "too large, off by more than a tenth"), (0.5, 1.0, "too small"),
    (torch.tensor([1.0, 1.0005]), torch.ones(2), "1 of 2 values are wrong, all of them too large, off by less than a thousandth"),
    (object(), [1], "got object"), (np.array(["a"]), 1.0, "expected numbers"),
]  # fmt: skip


def test_what_agrees():
    for got, wanted in AGREE:
        agree("f", got, wanted)
    agree("f", 0.0, 1e-9, atol=1e-8)
    require(True, "")


@pytest.mark.parametrize(("got", "wanted", "said"), DIFFER, ids=range(len(DIFFER)))
def test_what_differs_is_said_without_the_wanted_value(got, wanted, said):
    with pytest.raises(NotRight, match=said):
        agree("f", got, wanted)


def test_a_mistake_is_named_even_where_its_shape_differs_and_one_that_is_none_is_refused():
    with pytest.raises(NotRight, match="the mean"):
        agree("f", torch.tensor(2.0), torch.ones(2), mistakes={"You took the mean.": [torch.tensor(3.0), torch.tensor(2.0)]})
    with pytest.raises(ValueError, match="gives the right answer here"):
        agree("f", 1.0, 2.0, mistakes={"none": 2.0})


def test_a_check_is_seeded_and_leaves_randomness_alone():
    before = torch.get_rng_state()
    drawn = []
    checks.exercise("4.99")(lambda answer: drawn.append(answer()))
    check("4.99", lambda: torch.rand(1).item())
    check("4.99", lambda: torch.rand(1).item())
    assert drawn[0] == drawn[1] and torch.equal(before, torch.get_rng_state())
    del checks.CHECKS["4.99"]


def test_names_that_are_none_and_values_for_functions():
    with pytest.raises(UnknownName, match=r"unknown exercise '10\.55'; did you mean 10\.5"):
        check("10.55", print)
    with pytest.raises(NotRight, match="needs the function itself, got float"):
        check("10.1", 0.5)
    with pytest.raises(ZeroDivisionError):  # the student's own error, with its own traceback
        check("10.1", lambda *a: 1 / 0)


# ---- markers

GOOD = "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n"


@pytest.mark.parametrize("wrong", [
    GOOD.replace("    # END SOLUTION\n", ""), GOOD.replace("    # BEGIN SOLUTION\n", ""),
    GOOD + GOOD.replace("    # END SOLUTION\n", ""),
    GOOD.replace("# END", "# BEGIN"), GOOD.replace("return 1", "return 1  # END SOLUTION"),
    GOOD.replace("BEGIN SOLUTION", "BEGIN  SOLUTION"),
    "# BEGIN SOLUTION\nx = 1\n# END SOLUTION\n",
])  # fmt: skip
def test_unbalanced_markers_are_refused_by_place(wrong):
    with pytest.raises(Markers, match="line"):
        checks.stub(wrong, "hint", "10_x")


def test_two_regions_and_a_marker_in_a_text():
    both = GOOD + "\n\ndef g():\n    x = 2\n    # BEGIN SOLUTION\n    return x\n    # END SOLUTION\n"
    assert checks.stub(both, 'say "so"').count("raise NotImplementedError(\"say \\\"so\\\"\")") == 2
    assert checks.regions('text = """\n# BEGIN SOLUTION\n"""') == []


# ---- the commands


def run(*args):
    return cli.main([str(a) for a in args])


def test_start_writes_stubs_and_never_overwrites(tmp_path, capsys):
    sources = {path: path.read_bytes() for path in lessons().values()}
    mine = tmp_path / "my course"
    assert run("start", mine) == 0
    names = {p.name for p in mine.glob("*.ipynb")}
    assert names >= {p.name for p in lessons().values()} and (mine / "experiments" / "linear.ipynb").exists()
    (mine / "10_linear.ipynb").write_text("my night's work")
    (mine / "00_data.ipynb").unlink()
    assert run("start", mine) == 0 and "1 notebooks written" in capsys.readouterr().out.splitlines()[-2]
    assert (mine / "10_linear.ipynb").read_text() == "my night's work" and (mine / "00_data.ipynb").exists()
    assert {path: path.read_bytes() for path in sources} == sources
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    assert run("start", tmp_path / "other") == 2 and "not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    assert run("start", tmp_path / "other" / "thesis.tex") == 2
    assert run("start", tmp_path / "new", "10_linaer") == 2 and "did you mean 10_linear" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert run("start", tmp_path / "one", "10_linear") == 0 and (tmp_path / "one" / "10_linear.ipynb").exists()
    assert not (tmp_path / "one" / "00_data.ipynb").exists()
    assert run("start", lessons()["10_linear"].parent / "mine") == 2


def test_solution_shows_one(capsys):
    assert run("solution", "10.1") == 0
    shown = capsys.readouterr().out
    assert "def linear_error" in shown and "SOLUTION" not in shown and "#|" not in shown
    assert run("solution", "10.55") == 2 and "did you mean" in capsys.readouterr().err


def small_lesson(folder, *sources):
    "A course of one lesson, whose first exercise is 04_checks's 4.2; further code cells after it."
    (folder / "experiments").mkdir(parents=True)
    (e,) = [e for e in EXERCISES if e.number == "4.2"]
    book = json.loads(lessons()["04_checks"].read_text(encoding="utf-8"))
    text = "import torch\nfrom ae_course.checks import agree, check, exercise, require"
    imports = {"cell_type": "code", "id": "imports", "metadata": {}, "outputs": [], "execution_count": None, "source": text}
    cells = [imports, *(book["cells"][i] for i in (e.text_cell, e.answer_cell, e.check_cell, e.call_cell))]
    book["cells"] = [{**cell, "source": "".join(cell["source"]).replace("4.2", "44.1")} for cell in cells]
    book["cells"] += [{**imports, "id": f"more{i}", "source": source} for i, source in enumerate(sources)]
    path = folder / "44_small.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    return path


def edit(path, before, after):
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_progress_is_read_off_the_notebook_by_running_it(tmp_path, monkeypatch, capsys):
    small_lesson(tmp_path / "course", "print('more')")
    monkeypatch.setenv("AE_COURSE_NBS", str(tmp_path / "course"))
    mine = tmp_path / "mine"
    assert run("start", mine) == 0
    copy = mine / "44_small.ipynb"
    assert [row["state"] for row in checks.progress(mine)] == ["open"]  # and no kernel was started for it
    begin = json.loads(copy.read_text())["cells"][2]["source"][2]
    said = json.dumps(begin.strip())[1:-1]
    edit(copy, said, "return x.mean().reshape(1)")
    assert [row["state"] for row in checks.progress(mine)] == ["solved"]
    edit(copy, "return x.mean().reshape(1)", "return x")
    (row,) = checks.progress(mine)
    assert row["state"] == "not right" and "the image itself" in row["message"]
    edit(copy, "return x", "print('Exercise 44.1: correct.'); return 0 / 0")
    (row,) = checks.progress(mine)
    assert row["state"] == "stopped" and "ZeroDivisionError" in row["message"]
    edit(copy, "return 0 / 0", "import os; os._exit(1)")
    (row,) = checks.progress(mine)
    assert row["state"] == "stopped" and "died" in row["message"].lower()
    copy.write_text("{")
    assert [row["state"] for row in checks.progress(mine)] == ["stopped"]
    assert run("progress", mine) == 0 and "0 of 1 exercises solved" in capsys.readouterr().out
    assert run("progress", tmp_path) == 2 and "holds no lesson" in capsys.readouterr().err


def test_in_a_notebook_only_the_message_is_shown():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\nshell = InteractiveShell()\n"
        "shell.run_cell('from ae_course.checks import check\\ncheck(\"10.1\", lambda *a: 0.0)')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "NotRight: Exercise 10.1: linear_error(" in shown and "Traceback" not in shown and len(shown.strip().splitlines()) == 1


def test_lessons_come_from_the_course_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AE_COURSE_NBS", str(tmp_path))
    with pytest.raises(BadArgument, match="experiments"):
        lessons()
