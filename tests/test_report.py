"The report: what is in it, that it stays text, that it needs nothing from outside."

import argparse
import base64
import json
import os
import re
import socket
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from ae_course import report
from ae_course.figures import curves, png
from ae_course.lab import ParameterError, run_key
from ae_course.report import Found, alive, figures_of, find_runs

HOSTILE = "<script>alert(\"1\")</script> & 'x' {{ 7 * 7 }} http://example.org/x.js"


class Page(HTMLParser):
    "A page as a browser reads it: every tag closes in order; tags with attributes, text."

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attributes)))
        self.open += [tag] * (tag not in self.VOID)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@cache
def picture() -> bytes:
    return png(curves({"a": [1.0, 2.0]}, alt=f"Alt of {HOSTILE} ü"))


def a_run(runs: Path, name: str, seed: int = 0, preset: str = "laptop", version: str = "0.1+a", **parameters) -> Path:
    "A finished run with a figure and an executed notebook."
    parameters = {"seed": seed, "dataset": "toy", **parameters}
    folder = runs / name / run_key(parameters)
    folder.mkdir(parents=True)
    result = {
        "experiment": name, "parameters": parameters, "code_version": version, "seconds": 61.5,
        "rows": [{"seed": seed, "z": z, "mse": 0.123456 / z, HOSTILE: None} for z in (1, 2)],
        "environment": {"python": "3.11", "torch": "2.10", "device": "cpu", "threads": 1, "machine": "x86_64", "preset": preset},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "figures").mkdir()
    (folder / "figures" / "curve.png").write_bytes(picture())
    (folder / "notebook.ipynb").write_text("{}", encoding="utf-8")
    return folder


def status(runs: Path, name: str, key: str, **values) -> None:
    (runs / name / key).mkdir(parents=True)
    (runs / name / key / "status.json").write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def runs(tmp_path) -> Path:
    "Two experiments, among them every kind of run, in a folder with a hostile name."
    root = tmp_path / 'runs ü #1 "&"'
    for seed in (0, 1):
        a_run(root, "toy", seed, text=HOSTILE)
    a_run(root, "other", preset="paper")
    status(root, "toy", "failed", state="failed", error={"type": "E", "message": f"ValueError: {HOSTILE}"})
    status(root, "toy", "stopped", state="interrupted", progress=0.25, stage="z = 8")
    status(root, "toy", "killed", state="running", host=socket.gethostname(), pid=2**22 + 7, progress=0.5)
    status(root, "toy", "going", state="running", host=socket.gethostname(), pid=os.getpid(), progress=0.5)
    (root / "toy" / "nothing").mkdir()
    return root


def command(capsys, *args) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    report.add_commands(parser.add_subparsers())
    args = parser.parse_args(["report", *map(str, args)])
    return args.do(args), capsys.readouterr().out.strip()


def test_the_page_holds_rows_figures_parameters_and_what_made_them(runs, capsys):
    code, out = command(capsys, "--runs", runs)
    assert code == 0 and Path(out) == runs / "report.html"
    page = Page(Path(out))
    for text in ("on 3 finished runs", "0.1235", "0.06173", "1:01 (61.5 s)", "0.1+a", "x86_64", "threads", "3.11", "preset laptop, seed 1"):
        assert text in page.text, text
    assert [image["alt"] for image in page.all("img")] == [f"Alt of {HOSTILE} ü"] * 3
    assert page.all("img")[1]["src"].endswith(base64.b64encode(picture()).decode()) and page.all("img")[0]["width"].isdigit()


def test_what_is_not_done_is_listed_with_state_and_cause(runs, capsys):
    text = Page(Path(command(capsys, "--runs", runs)[1])).text
    gone = "running, but its process is gone.*50% done"
    for found in (f"failed.*ValueError: {re.escape(HOSTILE)}", "interrupted.*25% done, at z = 8", gone):
        assert re.search(found, text, re.DOTALL), found
    assert "nothing" not in text and Found("t", Path(), status={}).state == "unknown" and alive(os.getpid()) and alive("no number")


def test_names_stay_text_and_nothing_comes_from_outside(runs, capsys):
    page = Page(Path(command(capsys, "--runs", runs)[1]))
    assert {"script", "iframe", "object", "link", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.text.count(HOSTILE) >= 5 and "49 http" not in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    addresses = [attributes[key] for _, attributes in page.tags for key in ("src", "href", "srcset", "action") if key in attributes]
    assert not [a for a in addresses if not a.startswith(("#", "data:image/png;base64,", "toy/", "other/"))]
    assert not re.search(r"@import|url\(", page.source)


def test_links_lead_to_the_notebooks_from_wherever_the_page_lies(runs, capsys, tmp_path):
    for out in (runs / "report.html", tmp_path / "elsewhere" / "deep" / "r.html"):
        assert command(capsys, "--runs", runs, "--out", out) == (0, str(out))
        links = [a["href"] for a in Page(out).all("a") if a["href"].endswith(".ipynb")]
        assert len(links) == 3 and all((out.parent / unquote(link)).is_file() for link in links)
        assert not any(" " in link or '"' in link or "#" in link or str(tmp_path) in unquote(link) for link in links)


def test_the_page_can_be_read_by_everybody(runs, capsys):
    page = Page(Path(command(capsys, "--runs", runs)[1]))
    assert page.source.startswith("<!DOCTYPE html>") and page.all("html") == [{"lang": "en"}]
    assert len(page.all("caption")) == len(page.all("table")) and all("scope" in th for th in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    inside = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    assert len(ids) == len(set(ids)) and inside <= set(ids)
    assert "prefers-color-scheme: dark" in page.source and "width=device-width" in page.source


def test_presets_and_names_choose(runs, capsys):
    assert "Report on 2" in Page(Path(command(capsys, "toy", "--runs", runs)[1])).text
    text = Page(Path(command(capsys, "--preset", "paper", "--runs", runs)[1])).text
    assert "Report on 1" in text and "seed 1" not in text


def test_mixed_code_is_said(runs, capsys):
    a_run(runs, "toy", 2, version="0.1+b", text=HOSTILE)
    assert "made by 2 versions of the code: 0.1+a, 0.1+b" in Page(Path(command(capsys, "--runs", runs)[1])).text


def test_only_what_differs_has_a_column(runs, capsys):
    heads = re.findall(r'<th scope="col">(.*?)</th>', Page(Path(command(capsys, "toy", "--runs", runs)[1])).source)
    assert heads[:5] == ["run", "preset", "seed", "z", "mse"] and "dataset" not in heads


def test_a_spoiled_figure_and_a_spoiled_result_do_not_stop_it(runs, capsys):
    folder = a_run(runs, "toy", 5)
    (folder / "figures" / "half.png").write_bytes((folder / "figures" / "curve.png").read_bytes()[:200])
    (runs / "other" / "half").mkdir()
    (runs / "other" / "half" / "result.json").write_text('{"experiment": "other"', encoding="utf-8")
    (runs / "other" / "half" / "status.json").write_text('{"state": "killed"}', encoding="utf-8")
    text = Page(Path(command(capsys, "--runs", runs)[1])).text
    assert "half.png cannot be read" in text and "killed" in text and len(figures_of(folder)) == 2


@pytest.mark.parametrize("args, says", [
    (("--runs", "none"), "no finished run in .*none; ae-course run NAME makes one"),
    (("linear",), "no finished run of linear in .*; ae-course run linear makes one"),
    (("toi",), r"unknown experiment 'toi'; did you mean toy\?"),
    (("--preset", "smoke"), r"(?s)no finished run at smoke .*toy/failed: failed \(ValueError"),
    (("--out", "."), "got a folder, expected a file"),
])  # fmt: skip
def test_without_a_finished_run_it_says_so(runs, monkeypatch, capsys, args, says):
    monkeypatch.chdir(runs.parent)
    args = args if "--runs" in args else (*args, "--runs", runs)
    with pytest.raises(ParameterError, match=says) as caught:
        command(capsys, *args)
    assert caught.value.exit_code == 2 and not (runs / "report.html").exists()


def test_it_reads_what_the_lab_writes(lab, capsys):
    for args in (("run", "count"), ("run", "count", "-p", "seed", "1"), ("run", "count", "-p", "seed", "2")):
        lab(*args, "--engine", "plain", env={"TOY_FAULT": "error"} if args[-1] == "2" else None)
    found = find_runs(runs=lab.runs)["count"]
    assert sorted(run.state for run in found) == ["done", "done", "failed"]
    text = Page(Path(command(capsys, "--runs", lab.runs)[1])).text
    assert "no such thing" in text and "0.25" in text


def sweep_of(runs: Path, sizes=(4, 16), rates=(0.1, 0.5), seeds=(0, 1, 2)) -> None:
    for size in sizes:
        for rate in rates:
            for seed in seeds:
                folder = a_run(runs, "toy", seed, size=size, rate=rate, sizes=[1, 2])
                result = json.loads((folder / "result.json").read_text())
                result["rows"] = [{"seed": seed, "kind": kind, "mse": rate * (1 + seed) / size, "flat": 1} for kind in ("a", HOSTILE)]
                (folder / "result.json").write_text(json.dumps(result))


def test_small_multiples_have_a_panel_for_each_value_and_the_numbers_below(tmp_path, capsys):
    sweep_of(tmp_path)
    page = Page(Path(command(capsys, "toy", "--runs", tmp_path, "--panels", "rate")[1]))
    alts = [image["alt"] for image in page.all("img") if " against " in image["alt"]]
    assert [alt.partition(":")[0] for alt in alts] == ["mse against size where rate is 0.1", "mse against size where rate is 0.5"]
    assert all("kind a" in alt and HOSTILE in alt for alt in alts) and "mse against size, by rate" in page.text
    rows = re.findall(r"<tr><td>0.5</td><td>kind a</td>(.*?)</tr>", page.source)
    assert rows[0] == "<td>4</td><td>3</td><td>0.25</td><td>0.125</td><td>0.375</td>" and len(rows) == 2  # the mean of three seeds
    assert {"script", "link"}.isdisjoint(tag for tag, _ in page.tags) and len(page.all("caption")) == len(page.all("table"))


def test_the_axes_of_the_panels_may_be_chosen(tmp_path, capsys):
    sweep_of(tmp_path, rates=(0.5,))
    text = Page(Path(command(capsys, "toy", "--runs", tmp_path, "--panels", "kind", "--x", "seed", "--y", "mse")[1])).text
    assert "mse against seed, by kind" in text and "size 16" in text
    wrong = {("--panels", "siz"): "did you mean size", ("--panels", "rate"): "no column 'rate' in which the runs differ",
             ("--panels", "size", "--y", "kind"): "got texts, expected a column of numbers", ("--x", "size"): "--panels"}  # fmt: skip
    for args, says in wrong.items():
        with pytest.raises(ParameterError, match=says):
            command(capsys, "toy", "--runs", tmp_path, *args)


def test_a_cell_that_is_not_done_shows_which_it_is(tmp_path, capsys):
    sweep_of(tmp_path, sizes=(4, 8), rates=(0.5,), seeds=(0,))
    status(tmp_path, "toy", "failed", state="killed", error={"message": "for want of memory"})
    parameters = {"seed": 0, "size": 64, "rate": 0.5, "dataset": "toy", "sizes": [1, 2]}
    (tmp_path / "toy" / "failed" / "params.json").write_text(json.dumps(parameters))
    page = Page(Path(command(capsys, "--runs", tmp_path)[1]))
    assert re.search(r">failed</th><td>64</td><td class=\"bad\">killed</td><td>for want of memory", page.source)
    assert "preset laptop, size 8, seed 0" in page.text
