"What CI asks beyond the library's tests: every lesson and experiment from a fresh kernel, the site, the wheel, what git holds."

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from site_pages import EXPERIMENTS, LESSONS, ROOT, SCRIPTS, execute, for_smalldocs, pages  # noqa: E402


def call(*command, cwd=ROOT, **env):
    "A finished command; its output in the failure where it does not end with 0."
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as many tests as cores run side by side
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=os.environ | one_thread | env, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def tracked():
    return [ROOT / name for name in call("git", "ls-files").splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """A lesson, executed once for whoever asks first, in whichever of pytest's processes: both versions in one pass. Before each solution
    stands the student's stub, and the check that must stop it; both are marked `stub`."""
    import nbformat
    from filelock import FileLock

    from ae_course.checks import exercises

    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "executed"
    shared.mkdir(exist_ok=True)

    def run(path):
        code = nbformat.v4.new_code_cell
        with FileLock(shared / f"{path.stem}.lock"):
            if not (shared / path.name).exists():
                book, folder = nbformat.read(path, as_version=4), shared / f"{path.stem} with spaces"
                folder.mkdir(exist_ok=True)
                for e in reversed(exercises(path)):
                    stop = code(book.cells[e.call_cell].source, metadata={"stub": e.number, "tags": ["raises-exception"]})
                    book.cells[e.answer_cell : e.answer_cell] = [code(e.stub, metadata={"stub": ""}), stop]
                execute(book, folder)
                assert not list(folder.iterdir()), "a lesson leaves no file behind"
                nbformat.write(book, shared / path.name)
        return nbformat.read(shared / path.name, as_version=4)

    return run


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_lesson_runs_alone_from_a_fresh_kernel_and_every_stub_stops_at_its_check(path, executed):
    from ae_course.checks import exercises

    stops = {cell.metadata.stub: cell for cell in executed(path).cells if cell.metadata.get("stub")}
    for e in exercises(path):
        (error,) = [output for output in stops[e.number].outputs if output.output_type == "error"]
        assert error.ename == "NotSolved" and e.hint in error.evalue, f"{e.number}: {error.evalue}"


def test_a_student_starts_solves_one_exercise_and_sees_it(tmp_path):
    "The whole way through the commands; the copy runs from a fresh kernel, as JupyterLab would run it."
    from ae_course.checks import exercises

    mine = tmp_path / "my course"
    call(SCRIPTS / "ae-course", "start", mine, "10_linear")
    copy, (first, *others) = mine / "10_linear.ipynb", exercises(ROOT / "nbs" / "10_linear.ipynb")
    book = json.loads(copy.read_text(encoding="utf-8"))
    (answer,) = [cell for cell in book["cells"] if "".join(cell["source"]) == first.stub]
    answer["source"] = [first.solution]
    copy.write_text(json.dumps(book), encoding="utf-8")
    shown = call(SCRIPTS / "ae-course", "progress", mine).splitlines()
    assert shown[0].split() == [first.number, "solved"] and shown[-1] == f"1 of {1 + len(others)} exercises solved"
    assert [line.split()[:2] for line in shown[1:-1]] == [[e.number, "open"] for e in others]
    assert first.solution.splitlines()[-2].strip() in call(SCRIPTS / "ae-course", "solution", first.number)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_at_smoke_records_the_injected_parameters(path, tmp_path):
    first, guard = [c for c in cells(path) if c["cell_type"] == "code"][:2]
    assert "parameters" in first["metadata"]["tags"] and "start(" in "".join(guard["source"])
    call(SCRIPTS / "ae-course", "run", path.stem, "--preset", "smoke", "-p", "seed", "41", "--out", tmp_path)
    (result,) = tmp_path.glob("*/*/result.json")
    result = json.loads(result.read_text(encoding="utf-8"))
    assert result["experiment"] == path.stem and result["parameters"]["seed"] == 41
    assert result["rows"] and all(row["seed"] == 41 for row in result["rows"])
    assert list(tmp_path.glob("*/*/figures/*.png")) and list(tmp_path.glob("*/*/notebook.ipynb"))


def test_bare_papermill_injects_and_its_guard_cell_refuses_a_misspelt_parameter(tmp_path):
    experiment, preset = ROOT / "nbs/experiments/code_size.ipynb", ROOT / "nbs/experiments/presets/code_size.smoke.yaml"
    papermill = [SCRIPTS / "papermill", experiment, tmp_path / "out.ipynb", "-k", "python3", "-f", preset]
    shutil.copy(ROOT / "settings.ini", tmp_path)  # runs/ belongs to the folder that holds settings.ini
    call(*papermill, "-p", "epochs", "3", cwd=tmp_path)
    (result,) = (tmp_path / "runs" / "code_size").glob("*/result.json")
    assert json.loads(result.read_text(encoding="utf-8"))["parameters"]["epochs"] == 3
    wrong = subprocess.run([str(c) for c in [*papermill, "-p", "epoch", "3"]], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode != 0 and re.search(r"epoch\b.*did you mean '?epochs", wrong.stderr + wrong.stdout)


def test_presets_and_text_twins_are_complete():
    for path in EXPERIMENTS:
        for preset in ("smoke", "laptop", "paper"):
            assert (path.parent / "presets" / f"{path.stem}.{preset}.yaml").exists(), f"{path.stem} has no preset {preset}"
        assert (path.parent / "_text" / f"{path.stem}.py").exists(), f"{path.stem} has no text twin: jupytext --sync {path}"


def test_readme_and_index_list_every_lesson_and_experiment():
    readme, index = (ROOT / "README.md").read_text(encoding="utf-8"), "".join("".join(c["source"]) for c in cells(ROOT / "nbs/index.ipynb"))
    for path in [*LESSONS, *EXPERIMENTS]:
        inside = path.relative_to(ROOT / "nbs").as_posix()
        if path.stem not in ("index", "ledger"):
            assert f"(nbs/{inside})" in readme, f"README.md does not list {inside}"
            assert f"({inside})" in index, f"nbs/index.ipynb does not list {inside}"


def test_the_site_has_every_page_with_its_figures_and_no_broken_link(executed, tmp_path):
    books = {path: executed(path) for path in reversed(LESSONS)}  # from the other end than the lessons' own tests, which may run beside
    shown = {path: [cell for cell in book.cells if cell.get("outputs") and "#| hide" not in cell.source] for path, book in books.items()}
    figures = {path: sum("image/png" in out.get("data", {}) for cell in some for out in cell.outputs) for path, some in shown.items()}
    assert sum(figures.values()) > len(LESSONS), figures
    for book in books.values():
        book.cells = [cell for cell in book.cells if "stub" not in cell.metadata]
    made = pages(books, tmp_path / "nbs")
    assert made == sorted(p.relative_to(ROOT / "nbs") for p in [*LESSONS, *EXPERIMENTS])
    site = tmp_path / "site"
    for_smalldocs(site)
    print(call(SCRIPTS / "smalldocs", "check", cwd=site))
    call(SCRIPTS / "smalldocs", "render", cwd=site)
    html = {p.stem: p.read_text(encoding="utf-8") for p in site.rglob("*.html")}
    assert {p.stem for p in [*LESSONS, *EXPERIMENTS]} <= set(html)
    for path, count in figures.items():
        on_page = html[path.stem].count("<img")
        assert on_page >= count, f"{path.stem} draws {count} figures, its page shows {on_page}"
    if shutil.which("quarto") is None:
        print("quarto is not installed here: the pages were made by nbdev and checked by smalldocs, not rendered by quarto")


def test_the_wheel_works_in_an_empty_environment(tmp_path):
    source = tmp_path / "source"  # built from what git holds, so that nothing unlisted slips in and nothing is left here
    call("git", "checkout-index", "-a", "--prefix", f"{source}/")
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "empty", with_pip=True)
    scripts, elsewhere = tmp_path / "empty" / "bin", tmp_path / "elsewhere"
    elsewhere.mkdir()
    call(scripts / "pip", "install", wheel)
    listed = call(scripts / "ae-course", "list", cwd=elsewhere)
    assert all(path.stem in listed for path in EXPERIMENTS)
    call(scripts / "ae-course", "run", "code_size", "--preset", "smoke", cwd=elsewhere)
    assert list((elsewhere / "runs" / "code_size").glob("*/result.json"))
    call(scripts / "ae-course", "report", cwd=elsewhere)
    assert "<table" in (elsewhere / "runs" / "report.html").read_text(encoding="utf-8")
    call(scripts / "ae-course", "start", "mine", "10_linear", cwd=elsewhere)
    assert "not solved yet" in (elsewhere / "mine" / "10_linear.ipynb").read_text(encoding="utf-8")
    assert "def linear_error" in call(scripts / "ae-course", "solution", "10.1", cwd=elsewhere)
    assert "supported" in call(scripts / "ae-course", "claims", "L2", cwd=elsewhere).lower()
    assert (
        call(scripts / "python", "-c", "import ae_course.lab; print(ae_course.lab.course_root())", cwd=elsewhere)
        .strip()
        .startswith(str(tmp_path / "empty"))
    )


def test_importing_everything_adds_little_to_torch():
    code = (
        "import time, torch; t = time.perf_counter()\n"
        f"import {', '.join('ae_course.' + p.stem for p in sorted((ROOT / 'ae_course').glob('[a-z]*.py')))}\n"
        "import sys; heavy = {'matplotlib', 'sklearn', 'scipy', 'torchvision', 'pandas', 'IPython', 'ipywidgets', 'papermill'}\n"
        "heavy |= {'statsmodels', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert call(sys.executable, "-c", code).strip() == "[]"  # the heavy libraries come when they are needed
    assert "torch" not in call(sys.executable, "-c", "import sys, ae_course.lab; print([m for m in sys.modules if m == 'torch'])")


def test_modules_import_lower_floors_only():
    floors = {}
    for path in LESSONS:
        named = re.search(r"#\| default_exp (\w+)", "".join("".join(c["source"]) + "\n" for c in cells(path)))
        if named:
            floors[named[1]] = path.stem  # "00_base" < "00_data" < "01_autoencoder": the order of the house
    for module, floor in floors.items():
        text = (ROOT / "ae_course" / f"{module}.py").read_text(encoding="utf-8")
        named = re.findall(r"(?:from|import) (?:ae_course)?\.(\w+)", text)  # nbdev makes imports at the top relative
        named += re.findall(r"\w+", " ".join(re.findall(r"from (?:ae_course|\.) import ([\w, ]+)", text)))
        for other in named:
            assert floors.get(other, "") < floor or other == module, f"{module} (floor {floor}) imports {other} (floor {floors.get(other)})"


def test_notebooks_hold_no_outputs_and_open_with_a_title():
    for path in [*LESSONS, *EXPERIMENTS]:
        heading = [line for line in "".join(cells(path)[0]["source"]).splitlines() if line]
        assert [line[:2] for line in heading] == ["# ", "> "], f"{path.name}: the first cell is '# title' and '> subtitle', got {heading}"
        assert not any(c.get("outputs") or c.get("execution_count") for c in cells(path)), f"{path.name} holds outputs"
        assert path.stat().st_size < 300_000, path.name
        garbled = [i for i, c in enumerate(cells(path)) if re.search(r"[\x00-\x09\x0b-\x1f]", "".join(c["source"]))]
        assert not garbled, f"{path.name}: control characters in cells {garbled}; a formula's backslash was read as an escape"


def test_the_repository_holds_no_large_file_no_absolute_path_and_nothing_that_a_run_makes():
    top = {p.relative_to(ROOT).parts[0] for p in tracked()}
    named = {
        "nbs",
        "ae_course",
        "settings.ini",
        "setup.py",
        "data",
        "tests",
        "_quarto.yml",
        "README.md",
        "LICENSE",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "constraints.txt",
    }
    assert {name for name in top if not name.startswith(".")} == named
    for path in tracked():
        assert path.stat().st_size < 500_000, f"{path}: {path.stat().st_size} bytes"
        assert path.suffix not in {".safetensors", ".npy", ".npz", ".pt", ".pth", ".gz", ".zip", ".log"}, path
        if path.suffix in {".py", ".ipynb", ".md", ".yml", ".yaml", ".ini", ".csv", ".toml"}:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(?:home|Users|root|work)/\w+", text), f"{path} holds an absolute path"
