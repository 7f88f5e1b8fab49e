"Sweeps: the grid, what is run and what is not, workers, signals, deaths. With Dask: a real scheduler, real workers, killed for real."

import argparse
import hashlib
import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from ae_course import sweeps
from ae_course.lab import ParameterError
from ae_course.sweeps import Board, Driver, Grid, Survey, expectation, read_grid, share, span, survey

linux = pytest.mark.skipif(sys.platform != "linux", reason="a process dies with its parent on Linux only")
dask = pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="Dask is not installed: pip install 'ae_course[dask]'")
PLAIN = ("--engine", "plain")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def of_this_lab(lab) -> list[int]:
    "Processes of the runs of this lab, by their environment or command line."
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if str(lab.nbs).encode() in said and int(folder.name) != os.getpid() and alive(int(folder.name)):
            found.append(int(folder.name))
    return found


def wait(what, timeout: float = 90.0):
    "The first true value of `what()`."
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout} s in vain")


def statuses(lab) -> dict[str, dict]:
    "{run: its status}."
    found = {}
    for path in lab.runs.glob("*/*/status.json"):
        try:
            found[path.parent.name] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    return found


def running(lab, steps: int = 1) -> list[dict]:
    "Statuses of the runs that have logged so many lines, and go on."
    logged = lambda key: next(lab.runs.glob(f"*/{key}/log.jsonl"), None)
    return [s for key, s in statuses(lab).items()
            if s.get("state") == "running" and logged(key) and logged(key).read_text().count("\n") >= steps]  # fmt: skip


def done(lab) -> dict[str, tuple]:
    "{run: what its finished folder is made of: sizes, times, digests}."
    return {path.parent.name: tuple((file.name, file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
                                    for file in sorted(path.parent.glob("*.json*")))
            for path in lab.runs.glob("*/*/result.json")}  # fmt: skip


def untouched(before: dict, after: dict) -> bool:
    return all(after.get(key) == value for key, value in before.items())


# the grid


def test_a_grid_is_checked_whole_before_its_first_run(lab):
    result = lab("sweep", "count", "--grid", "seed=0,1,2", "steps=2,0,x", *PLAIN)
    assert result.returncode == 2 and all(part in result.stderr for part in ("nothing was run, 2 of", "steps: got 0", "steps: got 'x'"))
    assert not lab.runs.exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--grid", "steps"), "--grid: got 'steps' without values"),
        (("--grid", "steps=1", "-p", "steps", "2"), "given twice"),
        (("--grid", "steps=1", "steps=2"), "given twice"),
        (("--grid", "stepps=1"), "did you mean steps?"),
        (("--grid", "steps=1", "--workers", "0"), "--workers: got 0"),
        (("--grid", "steps=1", "--retries", "-1"), "--retries: got -1"),
        (("--grid", "steps=1", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"), "not together with"),
        (("--grid", "rate=1/0"), "rate: got '1/0'"),
    ],
)
def test_a_bad_sweep_is_refused(lab, args, says):
    result = lab("sweep", "count", *args)
    assert result.returncode == 2 and says in result.stderr and not lab.runs.exists(), result.stderr


def test_the_grid_command_line_of_the_lesson(lab, monkeypatch):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    grid = read_grid("count", ["rate=1/64,1/4,0.25", "sizes=[1,2],[3]", "mode=a,b", "limit=none,5"], typed=[("seed", "3")])
    cells = dict(grid)
    assert len(grid) == len(cells) == 2 * 2 * 2 * 2 and {c["seed"] for c in cells.values()} == {3}
    assert {c["rate"] for c in cells.values()} == {1 / 64, 0.25} and {tuple(c["sizes"]) for c in cells.values()} == {(1, 2), (3,)}
    assert {c["limit"] for c in cells.values()} == {None, 5}
    with pytest.raises(ParameterError, match=r"3 of the grid's values(.|\n)*mode: got 'c'(.|\n)*unknown parameter x"):
        read_grid("count", ["rate=2", "mode=a,c", "x=1"])


def test_a_choice_may_look_like_a_fraction(lab, monkeypatch):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    lab.add("wide", "channels: str = '1/4'  # one of 1/64, 1/4: channels\nseed: int = 0", "rows = [{'seed': seed}]")
    assert [c["channels"] for _, c in read_grid("wide", ["channels=1/64,1/4"])] == ["1/64", "1/4"]


# what is run, and what is not


def test_failures_are_isolated_listed_and_made_good_by_the_next_start(lab):
    args = ("sweep", "count", "--grid", "seed=0,1,2", "sizes=[2],[3,1]", "-p", "rate", "1", *PLAIN)
    dry = lab(*args, "--dry-run")
    assert dry.returncode == 0 and "6 cells: 6 not run" in dry.stdout and "unknown" in dry.stdout and not lab.runs.exists()
    result = lab(*args, "--workers", "2", env={"TOY_FAULT": "kill 1"})
    assert result.returncode == 1 and "4 of 6 runs done" in result.stdout, result.stdout + result.stderr
    assert result.stdout.count("killed") >= 2 and "want of memory" in result.stdout and "[1, 3]" not in result.stdout
    before = done(lab)
    dry = lab(*args, "--dry-run")
    assert "6 cells: 4 done, 2 killed" in dry.stdout and "judged by" in dry.stdout, dry.stdout
    again = lab(*args)
    assert again.returncode == 0 and "6 of 6 runs done, 4 of them before" in again.stdout, again.stdout + again.stderr
    assert len(before) == 4 and untouched(before, done(lab)) and len(done(lab)) == 6
    nothing = lab(*args)
    assert nothing.returncode == 0 and "6 of 6 runs done, all of them before" in nothing.stdout


def test_killed_runs_are_tried_again_as_often_as_asked(lab):
    result = lab("sweep", "count", "--grid", "seed=0,1", "--retries", "2", *PLAIN, env={"TOY_FAULT": "kill 1"})
    assert result.returncode == 1 and result.stderr.count("tried again later") == 2 and "1 of 2 runs done" in result.stdout
    assert "(2 of 2)" in result.stderr


def test_the_smallest_sweep_through_papermill_goes_on_after_a_killed_kernel(lab):
    result = lab("sweep", "count", "--grid", "seed=0,1", "--preset", "smoke", "--workers", "2", env={"TOY_FAULT": "kill 1"})
    assert result.returncode == 1 and "1 of 2 runs done" in result.stdout and "killed" in result.stdout, result.stdout + result.stderr
    for path in lab.runs.glob("count/*/result.json"):
        result = json.loads(path.read_text())
        assert result["environment"]["preset"] == "smoke" and (path.parent / "notebook.ipynb").is_file()


def test_an_interrupted_cell_resumes_from_its_checkpoint(lab):
    process = lab.start("sweep", "train", "--grid", "seed=0,1", "-p", "steps", "12", "--workers", "2", *PLAIN, env={"TOY_NAP": "0.4"})
    wait(lambda: len(running(lab, 3)) == 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 130 and out.count("  interrupted  ") == 2 and "stopping after this step" in err, out + err
    assert len(list(lab.runs.glob("train/*/checkpoints/*"))) == 2
    epochs = {path.parent.name: len(path.read_text().splitlines()) for path in lab.runs.glob("train/*/log.jsonl")}
    result = lab("sweep", "train", "--grid", "seed=0,1", "-p", "steps", "12", *PLAIN)
    assert result.returncode == 0, result.stdout + result.stderr
    for path in lab.runs.glob("train/*/log.jsonl"):
        assert epochs[path.parent.name] >= 3 and len(path.read_text().splitlines()) == 24  # two stages, no epoch twice


def test_a_finished_run_of_other_code_is_reported_and_force_runs_it_again(lab):
    assert lab("sweep", "count", "--grid", "seed=0,1", *PLAIN).returncode == 0
    path = lab.nbs / "experiments" / "count.ipynb"
    path.write_text(path.read_text().replace("rate / size", "rate / size ** 2"))
    result = lab("sweep", "count", "--grid", "seed=0,1,2", *PLAIN)
    assert result.returncode == 0 and "2 of the finished runs are by code version" in result.stderr
    result = lab("sweep", "count", "--grid", "seed=0,1,2", "--force", "--workers", "2", *PLAIN)
    assert result.returncode == 0 and "3 of 3 runs done, in" in result.stdout, result.stdout + result.stderr
    results = [json.loads(path.read_text()) for path in lab.runs.glob("count/*/result.json")]
    assert len({r["code_version"] for r in results}) == 1 and len(list(lab.runs.glob("count/*/result.previous.json"))) == 3


def test_two_sweeps_over_one_grid_share_the_work(lab):
    grid = ("sweep", "count", "--grid", "seed=0,1,2,3,4,5", *PLAIN)
    both = [lab.start(*grid, "--workers", n, env={"TOY_NAP": "0.05"}) for n in ("1", "2")]
    said = [process.communicate(timeout=90) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    logs = [path.read_text().splitlines() for path in lab.runs.glob("count/*/log.jsonl")]
    assert len(logs) == 6 and all(len(log) == 6 for log in logs)  # two sizes, three steps, none twice


def test_a_cell_that_is_held_elsewhere_is_listed_as_busy(lab, monkeypatch, capsys):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    monkeypatch.setattr(sweeps.Local, "busy_tries", 2)
    monkeypatch.setattr(sweeps.Local, "pause", 0.2)
    holder = lab.start("run", "count", *PLAIN, env={"TOY_NAP": "60"})
    wait(lambda: running(lab, 0))
    assert sweeps.sweep("count", ["seed=0,1"], out=str(lab.runs), engine="plain") == 1
    holder.kill()
    holder.communicate()
    said = capsys.readouterr().out
    assert "busy" in said and "in use by process" in said and "1 of 2 runs done" in said


# signals and deaths


@pytest.mark.parametrize(("number", "code", "engine"), [(signal.SIGTERM, 143, "papermill"), (signal.SIGINT, 130, "plain")])
def test_a_sweep_that_is_stopped_finishes_its_steps(lab, number, code, engine):
    process = lab.start("sweep", "count", "--grid", "seed=0,1,2", "--engine", engine, env={"TOY_NAP": "0.3"})
    wait(lambda: running(lab))
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code and out.count("not run") == 2 and "interrupted" in out, out + err
    assert not done(lab) and wait(lambda: not of_this_lab(lab), 5)


def test_twice_stops_at_once(lab):
    process = lab.start("sweep", "count", "--grid", "seed=0,1", "--engine", "papermill", env={"TOY_NAP": "60"})
    wait(lambda: [s for s in statuses(lab).values() if s.get("stage")])
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - began < 15 and "stopping at once" in err, out + err
    assert wait(lambda: not of_this_lab(lab), 8)


@linux
@pytest.mark.parametrize("engine", ["plain", "papermill"])
def test_a_killed_sweep_leaves_no_run_behind(lab, engine):
    workers = 1 if engine == "papermill" else 2
    process = lab.start("sweep", "count", "--grid", "seed=0,1", "--workers", workers, "--engine", engine, env={"TOY_NAP": "30"})
    wait(lambda: len([s for s in statuses(lab).values() if s.get("stage")]) == workers)
    assert len(of_this_lab(lab)) >= 3
    process.kill()
    process.communicate()
    assert wait(lambda: not of_this_lab(lab), 8)


def kill_at_random(lab, args, draw, kills: int, env=None) -> int:
    "Start the sweep again and again; each time kill the sweep, a launcher or a kernel; returns how many starts it took."
    for start in range(1, 60):
        before = done(lab)
        process = lab.start(*args, env=env)
        if start <= kills:
            wait(lambda process=process: running(lab) or process.poll() is not None)
            time.sleep(draw.uniform(0, 0.5))
            victims = [process.pid] if draw.random() < 0.3 else of_this_lab(lab) + [s["pid"] for s in running(lab)]
            for victim in draw.sample(victims, min(len(victims), 2)):
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        out, err = process.communicate(timeout=120)
        assert untouched(before, done(lab)), "a finished folder was touched"
        if process.returncode == 0:
            return start
        assert process.returncode in (1, -signal.SIGKILL), out + err
    raise AssertionError("never ended")


@linux
def test_random_kills_do_no_harm(lab):
    seeds = os.environ.get("AE_COURSE_KILL_CELLS", "8")  # 24 for the long form
    env = {"TOY_NAP": "0.1"}
    args = ("sweep", "count", "--grid", f"seed={','.join(map(str, range(int(seeds))))}", "-p", "steps", "2", "--workers", "2", *PLAIN)
    starts = kill_at_random(lab, args, random.Random(5), kills=max(3, int(seeds) // 3), env=env)
    finished = done(lab)
    assert starts > 1 and len(finished) == int(seeds) and not of_this_lab(lab)
    found = {json.loads((lab.runs / "count" / key / "result.json").read_text())["parameters"]["seed"] for key in finished}
    assert found == set(range(int(seeds)))


# what is shown, and how much it takes


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_table_is_redrawn_in_place(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "5")
    screen = Screen()
    board = Board(screen)
    board.draw([f"line {i} " + "x" * 60 for i in range(9)])
    lines = screen.getvalue().splitlines()
    assert len(lines) == 4 and all(len(line) <= 39 for line in lines) and lines[-1] == "... and 6 more"
    board.note("stays")
    assert screen.getvalue().endswith("\x1b[4F\x1b[Jstays\n") and board.due()


def test_the_live_table_tells_stage_loss_and_time(lab):
    process = lab.start("sweep", "count", "--grid", "seed=0,1", "--workers", "2", *PLAIN, env={"TOY_NAP": "0.2"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "0 of 2 done, 2 running" in err and "starting" in err and "[2/2]" in err
    assert "\x1b" not in err + out


def test_threads_and_cards_are_divided(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for workers, cores in ((2, 2), (3, 16), (5, 3)):
        threads = [int(share(i, workers, cores)["OMP_NUM_THREADS"]) for i in range(workers)]
        assert sum(threads) == max(cores, workers) and max(threads) - min(threads) <= 1
    assert [share(i, 4, 8, ["7", "9"])["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["7", "9", "7", "9"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab, ")
    sweeps.graphics_cards.cache_clear()
    assert sweeps.graphics_cards() == ("3", "GPU-ab")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engine = sweeps.Local(2)
    assert [s["CUDA_VISIBLE_DEVICES"] for s in engine.settings] == ["3", "GPU-ab"] and engine.settings[0]["OMP_NUM_THREADS"] == "1"
    assert sweeps.Local(1).settings == [{}]
    sweeps.graphics_cards.cache_clear()


def test_a_child_sees_its_threads(lab):
    lab.add("threads", "seed: int = 0  # seed", "import os\nrows = [{'seed': seed, 'threads': int(os.environ['OMP_NUM_THREADS'])}]")
    assert lab("sweep", "threads", "--grid", "seed=0,1", "--workers", "2", *PLAIN, env={"OMP_NUM_THREADS": "64"}).returncode == 0
    rows = [json.loads(path.read_text())["rows"][0] for path in lab.runs.glob("threads/*/result.json")]
    assert sum(row["threads"] for row in rows) == max(2, sweeps.cores() // 2 * 2)


def test_workers_of_a_machine_have_seats_of_their_own(monkeypatch):
    engine = object.__new__(sweeps.Dask)
    engine.threads = {"tcp://10.0.0.2:1": 1, "tcp://10.0.0.1:7": 2, "tcp://10.0.0.1:9": 1}
    places = engine.places()
    assert places == {"tcp://10.0.0.1:7": (0, 3), "tcp://10.0.0.1:9": (2, 3), "tcp://10.0.0.2:1": (0, 1)}
    monkeypatch.setattr(sweeps, "graphics_cards", lambda: ("a", "b", "c"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sweeps, "cores", lambda: os.cpu_count())
    assert sweeps.seat_settings(places, "tcp://10.0.0.1:9", 1, 0)["CUDA_VISIBLE_DEVICES"] == "c"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b,c")  # Slurm gave the worker cards of its own
    assert sweeps.seat_settings(places, "tcp://10.0.0.1:9", 1, 0)["CUDA_VISIBLE_DEVICES"] == "a"


def test_the_estimate_comes_from_the_nearest_runs(lab, monkeypatch):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    grid = read_grid("count", ["steps=1,100", "seed=0,1,2"])
    for key, parameters in grid:
        if parameters["seed"] == 0:
            folder = lab.runs / "count" / key
            folder.mkdir(parents=True)
            result = {"experiment": "count", "parameters": parameters, "rows": [{"seed": 0}], "environment": {}, "code_version": "1"}
            (folder / "result.json").write_text(json.dumps({**result, "seconds": 10.0 * parameters["steps"]}))
    seen = survey(grid, lab.runs)
    assert seen.open == 4 and seen.seconds == pytest.approx(2020) and seen.longest == 1000
    assert expectation(seen, 2, lab.runs).startswith("estimated time: 16:50 to 25:10 with 2 workers")
    assert survey(grid, lab.runs, force=True).open == 6
    assert span(10.0, 4.0, 1) == (10.0, 10.0)


def test_a_thousand_finished_cells_are_read_once_each(lab, monkeypatch):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    grid, opened = read_grid("count", ["seed=" + ",".join(map(str, range(300)))]), []
    for key, parameters in grid:
        (lab.runs / "count" / key).mkdir(parents=True)
        result = {"experiment": "count", "parameters": parameters, "rows": [{"seed": 0}], "environment": {}, "code_version": "1"}
        result["seconds"] = 1.0
        (lab.runs / "count" / key / "result.json").write_text(json.dumps(result))
    read = sweeps.result_of
    monkeypatch.setattr(sweeps, "result_of", lambda folder: opened.append(folder) or read(folder))
    seen = survey(grid, lab.runs)
    assert seen.states == {"done": 300} and len(seen.rows) == sweeps.LISTED
    assert len(opened) <= 2 * 300  # once by its key, once for the estimate


class Pretended:
    lag, busy_tries, pause, moves, slots, about = 0.0, 0, 0.0, 0, 500, ""

    def __init__(self):
        self.keys = []

    def room(self):
        return self.slots - len(self.keys)

    def start(self, name, key, parameters, folder, options):
        self.keys.append(key)

    def ended(self):
        keys, self.keys = self.keys, []
        yield from ((key, 1, "pretended") for key in keys)

    def news(self):
        return []


def test_memory_does_not_grow_with_the_grid(lab, capsys):
    def peak(cells):
        parameters = {"a": 0, "b": 0, "seed": 0}
        grid = Grid("none", parameters, {"a": range(cells // 100), "b": range(10), "seed": range(10)})
        with open(os.devnull, "w") as nothing:
            tracemalloc.start()
            driver = Driver(grid, lab.runs, Pretended(), Board(nothing, every=3600), survey(grid, lab.runs))
            driver.run()
            assert driver.summary() == 1 and driver.states["failed"] == cells
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak

    small = peak(500)
    assert peak(2000) < small + 100_000
    assert "0 of 2000 runs done, 1940 more that are not done" in capsys.readouterr().out


def test_the_summary_of_a_lost_scheduler_lists_what_was_left(lab, monkeypatch, capsys):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    grid = read_grid("count", ["seed=0,1"])
    driver = Driver(grid, lab.runs, Pretended(), Board(io.StringIO()), Survey())
    driver.begin(driver.queue.next())
    assert driver.summary() == 1
    out = capsys.readouterr().out
    assert "left behind" in out and out.count("not run") == 2 and "0 of 2 runs done" in out


def test_the_command_has_its_options():
    commands = argparse.ArgumentParser().add_subparsers()
    sweeps.add_commands(commands)
    args = commands.choices["sweep"].parse_args(["x", "--grid", "a=1", "--scheduler", "local", "--workers", "2"])
    assert (args.scheduler, args.workers, args.retries, args.dry_run) == ("local", 2, 0, False)


# Dask


def test_without_dask_the_extra_is_named(lab):
    (lab.place / "distributed.py").write_text("raise ImportError")
    code = "import sys, importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'distributed' else f(n, *a)\n"
    code += "from ae_course.cli import main; sys.exit(main(['sweep', 'count', '--grid', 'seed=0', '--scheduler', 'local']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=lab.place, env=lab.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "pip install 'ae_course[dask]'" in done.stderr and not list(lab.runs.glob("*/*"))


class Farm:
    "A Dask scheduler and two workers on loopback, processes of their own."

    def __init__(self, lab, workers: int = 2):
        self.lab, self.file = lab, lab.place / "scheduler.json"
        self.scheduler = self.dask("scheduler", "--port", "0", "--no-dashboard")
        wait(self.file.is_file)
        self.workers = [self.worker() for _ in range(workers)]

    def dask(self, what, *words, env=None):
        command = [sys.executable, "-m", "dask", what, "--host", "127.0.0.1", "--scheduler-file", str(self.file), *words]
        said = open(self.lab.place / f"{what}.log", "a")  # noqa: SIM115
        return subprocess.Popen(command, cwd=self.lab.place, env={**self.lab.env, **(env or {})}, stdout=said, stderr=said)

    def worker(self):
        fast = {"DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s", "TOY_NAP": "0.3"}
        local = str(self.lab.place / "dask")
        return self.dask("worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", local, env=fast)

    def close(self):
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture
def farm(lab):
    farm = Farm(lab)
    yield farm
    farm.close()


@dask
@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dask_worker_that_ends_takes_its_run_along_and_the_cell_goes_on_elsewhere(lab, farm, number):
    args = ("sweep", "count", "--grid", "seed=0,1,2,3", "-p", "steps", "8", "--scheduler", str(farm.file), *PLAIN)
    process = lab.start(*args)
    wait(lambda: len(running(lab, 3)) == 2)
    pids = {status["pid"] for status in running(lab)}
    before = done(lab)
    farm.workers[0].send_signal(number)
    assert wait(lambda: sum(alive(pid) for pid in pids) <= 1, 10)  # its run is gone with it
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0 and "4 of 4 runs done" in out and "is gone" in err, out + err
    assert untouched(before, done(lab)) and len(done(lab)) == 4
    steps = sorted(len(path.read_text().splitlines()) for path in lab.runs.glob("count/*/log.jsonl"))
    assert steps[:3] == [16, 16, 16]  # only the cell of the dead worker was trained more than once
    again = lab(*args)
    assert again.returncode == 0 and "all of them before" in again.stdout


@dask
@linux
def test_a_killed_scheduler_ends_the_sweep_and_its_runs_and_the_next_start_goes_on(lab, farm):
    grid = ("sweep", "count", "--grid", "seed=0,1,2", "-p", "steps", "6", *PLAIN)
    process = lab.start(*grid, "--scheduler", str(farm.file))
    wait(lambda: len(done(lab)) >= 1 and running(lab))
    farm.scheduler.kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "is gone; nothing that was computed is lost" in err and "Traceback" not in err, out + err
    before = done(lab)
    assert wait(lambda: not running(lab, 0) and all(w.poll() is not None for w in farm.workers), 20)
    assert not of_this_lab(lab)
    assert before and untouched(before, done(lab))
    result = lab(*grid, "--scheduler", "local", "--workers", "2")
    assert result.returncode == 0 and "3 of 3 runs done" in result.stdout, result.stdout + result.stderr
    assert untouched(before, done(lab)) and wait(lambda: not of_this_lab(lab), 10)


@dask
def test_ctrl_c_reaches_the_runs_on_dask_workers(lab, farm):
    process = lab.start("sweep", "count", "--grid", "seed=0,1,2,3", "-p", "steps", "60", "--scheduler", str(farm.file), *PLAIN)
    wait(lambda: len(running(lab)) == 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 130 and out.count("  interrupted  ") == 2 and out.count("not run") == 2, out + err
    assert all(worker.poll() is None for worker in farm.workers)


@dask
def test_a_worker_that_does_not_share_the_folder_or_the_code_is_named(lab, farm):
    path = lab.nbs / "experiments" / "count.ipynb"
    elsewhere = lab.place / "nbs2"
    elsewhere.mkdir()
    (elsewhere / "experiments").mkdir()
    (elsewhere / "experiments" / "count.ipynb").write_text(path.read_text().replace("rate / size", "rate / size ** 2"))
    grid = ("sweep", "count", "--grid", "seed=0", "--scheduler", str(farm.file), *PLAIN)
    result = lab(*grid, env={"AE_COURSE_NBS": str(elsewhere)})
    assert result.returncode == 1 and "install the same on both" in result.stdout, result.stdout + result.stderr
    assert not done(lab)


@dask
def test_no_scheduler_is_told_in_a_sentence():
    with pytest.raises(ParameterError, match="no Dask scheduler answers(.|\n)*dask scheduler(.|\n)*--scheduler local"):
        sweeps.connect("tcp://127.0.0.1:9", timeout=0.3)
