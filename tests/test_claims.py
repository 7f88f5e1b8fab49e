"Rules on tables with known answers, edited tables, broken ledgers, the command, the page."

import argparse
import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ae_course import claims
from ae_course.claims import (
    RULES,
    Claim,
    TableError,
    Terms,
    Verdict,
    apply,
    as_markdown,
    check_rule,
    columns_of,
    escaped,
    interval,
    ledger_file,
    read_ledger,
    read_table,
    rule_in_words,
    tables_root,
    verdict,
    verdicts,
)  # fmt: skip
from ae_course.lab import ParameterError, course_root, record_digest

# every id that the course set out to decide
IDS = {f"L{i}" for i in range(1, 18)} | {"L-M"} | {f"B{i}" for i in range(1, 19)} | {f"T{i}" for i in (1, 2, *range(4, 13))}
IDS |= {f"D{i}" for i in range(1, 12)} | {"X1"}


def rows(seeds=(0, 1, 2), noise=0.0, **arms):
    "A table: for each arm a function of the size; `noise` is the deviation over seeds."
    rng = random.Random(0)
    return [{"seed": str(s), "preset": "laptop", "dataset": "toy", "limit": "", "epochs": "5", "device": "cpu", "arm": arm, "z": str(z),
             "mse": repr(f(z) + rng.gauss(0, noise))} for s in seeds for arm, f in arms.items() for z in (1, 2, 4, 8)]  # fmt: skip


def q(arm, z=2, **more):
    return {"column": "mse", "where": {"arm": arm, "z": z}, **more}


def pair(a="a", b="b", **limit):
    return {"a": q(a), "b": q(b), **limit}


TABLE = rows(noise=0.01, a=lambda z: 4 / z, b=lambda z: 8 / z, c=lambda z: 4 / z)  # at z = 2: a 2, b 4, c 2; each falls
NOISY = rows(noise=3.0, a=lambda z: 4 / z + 10, b=lambda z: 8 / z + 10, c=lambda z: 4 / z + 10)
CURVE = {"column": "mse", "along": "z", "where": {"arm": "a"}}
ARM, BOTH = {"column": "mse", "where": {"arm": "a"}}, {"column": "mse", "where": {"arm": ["a", "b"]}}


def value(quantity=None, **limit):
    return {"value": {**(quantity or q("a")), **limit}}


def two(kind, a="a", b="b", **limit):
    return {kind: pair(a, b, **limit)}


def each(column, of, **more):
    return {"for_each": {"column": column, "of": of, **more}}


def steps(**more):
    return {"monotone": {**CURVE, **more}}


BELOW = {"difference": {"a": {"column": "mse", "where": {"arm": "a"}}, "b": {"column": "mse", "where": {"arm": "b"}}, "at_most": 0}}
AT_2 = {"column": "mse", "where": {"z": 2}}
RELATIVE = {"margin": 0.1, "relative": True}
FALLS = {"expect": "falls", "relative": True}
CASES = [  # supported and contradicted by TABLE, undecided by NOISY
    (value(at_most=3), value(at_least=3), value(at_most=11)),
    (value({**ARM, "take": "max"}, at_least=3.5), value({**ARM, "take": "mean"}, at_most=1), value({**ARM, "take": "median"}, at_most=11)),
    (value({**BOTH, "take": "spread"}, at_least=9), value({**BOTH, "take": "min"}, at_least=1), value({**BOTH, "take": "min"}, at_most=7)),
    (two("difference", at_most=0), two("difference", at_least=0), two("difference", at_most=0)),
    (two("difference", at_most=-1), two("difference", at_most=-3), two("difference", at_most=-1)),
    (two("ratio", at_most=0.6), two("ratio", at_least=0.6), two("ratio", at_most=0.9)),
    (two("equivalent", "a", "c", margin=0.2), two("equivalent", margin=0.2), two("equivalent", "a", "c", margin=0.2)),
    (two("equivalent", "a", "c", **RELATIVE), two("equivalent", **RELATIVE), two("equivalent", "a", "c", **RELATIVE)),
    (steps(expect="falls"), steps(expect="rises"), steps(expect="falls", by=-5)),
    (steps(**FALLS, by=1.5), steps(**FALLS, by=4), steps(**FALLS, by=0.7)),
    (value({**CURVE, "take": "slope", "log": True}, at_most=-0.8), value({**CURVE, "take": "slope", "log": True}, at_least=0),
     value({**CURVE, "take": "slope"}, at_most=-0.5)),
    ({"all_of": [two("difference", at_most=0), value(at_most=3)]}, {"all_of": [two("difference", at_most=0), value(at_least=3)]},
     {"all_of": [two("difference", at_most=100), value(at_most=11)]}),
    ({"any_of": [two("difference", at_least=0), value(at_most=3)]}, {"any_of": [two("difference", at_least=0), value(at_least=3)]},
     {"any_of": [two("difference", at_least=100), value(at_most=11)]}),
    (each("z", BELOW), each("arm", value(AT_2, at_most=3), where={"arm": ["a", "b"]}), each("arm", value(AT_2, at_most=13))),
]  # fmt: skip


def claim(rule, **more):
    return Claim(**{"id": "Q1", "source": ("L",), "place": "p", "statement": "s", "experiment": "toy", "rule": rule, **more})


@pytest.mark.parametrize("case", CASES, ids=lambda case: next(iter(case[0])))
def test_each_rule_gives_each_verdict(case):
    for rule, table, wanted in zip(case, (TABLE, TABLE, NOISY), ("supported", "contradicted", "undecided")):
        check_rule(rule, "test")
        (found,) = verdict(claim(rule), table)
        assert found.verdict == wanted, (rule, found.finding)
        assert found.finding.low <= found.finding.effect <= found.finding.high and found.finding.seeds == ("0", "1", "2")
        assert rule_in_words(rule)
    assert verdict(claim(case[0]), [])[0].verdict == "no data"


def test_every_rule_is_tested_in_every_verdict():
    assert {next(iter(case[0])) for case in CASES} | {"contrast"} == set(RULES)


def grid(a, b, seeds=(0, 1, 2), noise=0.0):
    rng = random.Random(1)
    return [{"seed": str(s), "size": str(size), "channels": str(n), "mse": repr(size**a * n**b * math.exp(rng.gauss(0, noise)))}
            for s in seeds for size in (3, 6, 12) for n in (3, 12, 48)]  # fmt: skip


def test_contrast_gives_each_verdict_and_the_exponents():
    rule = {"contrast": {"column": "mse", "terms": {"size": 1, "channels": -2}, "at_most": 0}}
    cases = {"supported": (-1, -0.1, 0.01), "contradicted": (-0.1, -0.3, 0.01), "undecided": (-0.4, -0.2, 0.5)}
    for wanted, (a, b, noise) in cases.items():
        assert verdict(claim(rule), grid(a, b, noise=noise))[0].verdict == wanted
    assert math.isclose(apply(grid(-1, -0.1), rule, Terms()).effect, -0.8, rel_tol=1e-9)
    few = [row for row in grid(-1, -0.1) if row["size"] == "3"]
    with pytest.raises(TableError, match="Q1: .*toy.csv.*3 configurations"):
        verdict(claim(rule), few)
    with pytest.raises(TableError, match="two rows of seed 0 at size = 3"):
        verdict(claim(rule), [*grid(-1, -0.1), grid(-1, -0.1)[0]])
    missing = [row for row in grid(-1, -0.1, noise=0.01) if not (row["seed"] == "2" and row["size"] == "12")]
    (found,) = verdict(claim(rule), missing)  # a seed without all configurations does not count
    assert found.verdict == "undecided" and found.finding.seeds == ("0", "1") and "2 seeds, 3 needed" in found.reasons


def test_too_few_seeds_are_undecided_and_still_show_the_effect():
    rule = {"difference": pair(at_most=0)}
    (found,) = verdict(claim(rule, seeds=5), TABLE)
    assert found.verdict == "undecided" and found.reasons == ("3 seeds, 5 needed",) and found.finding.effect < -1.9
    (found,) = verdict(claim(rule), [row for row in TABLE if row["seed"] == "0"])
    assert found.verdict == "undecided" and "1 seed, 3 needed" in found.reasons and found.finding.low is None


def test_what_lacks_spread_is_not_oversold():
    exact = rows(a=lambda z: 4 / z, b=lambda z: 8 / z)
    (found,) = verdict(claim({"difference": pair(at_most=0)}), exact)
    assert found.verdict == "supported" and found.finding.low is None and "no spread" in found.reasons[0] and "no interval" in found.effect
    (found,) = verdict(claim({"equivalent": pair(margin=0.1)}), exact)
    assert found.verdict == "contradicted" and found.finding.low is None
    one = [row for row in exact if row["seed"] == "0"]
    assert verdict(claim({"value": {**q("a"), "at_most": 2}}, deterministic=True), one)[0].verdict == "supported"
    (found,) = verdict(claim({"value": {**q("a"), "at_most": 3}}, deterministic=True), TABLE)
    assert found.verdict == "undecided" and "nothing random" in found.reasons[0]
    assert interval([0.0, 0.0, 0.0]).flat and interval([1e-300, -1e-300]).low is not None


def test_a_seed_against_the_majority_is_named():
    table = rows(seeds=range(6), noise=0.001, a=lambda z: 4 / z, b=lambda z: 8 / z)
    table = [{**row, "mse": "9"} if (row["seed"], row["arm"]) == ("4", "a") else row for row in table]
    (found,) = verdict(claim({"difference": pair(at_most=0)}), table)
    assert any("seed 4 would break the rule" in reason for reason in found.reasons)


def test_scales_are_decided_apart_and_named():
    other = [{**row, "preset": "paper", "dataset": "large", "limit": "100", "epochs": "90"} for row in TABLE if row["seed"] == "0"]
    device = [{**row, "device": "gpu"} if row["seed"] == "2" else row for row in TABLE]
    first, second = verdict(claim({"difference": pair(at_most=0)}), [*device, *other])
    assert first.verdict == "supported" and first.scale == {
        "dataset": "toy", "images": "all images", "epochs": "5 epochs", "seeds": ["0", "1", "2"], "device": "cpu, gpu", "preset": "laptop",
    }  # fmt: skip
    assert second.verdict == "undecided" and second.scale["images"] == "100 images" and second.scale["preset"] == "paper"
    twice = [*TABLE, *({**row, "device": "gpu"} for row in TABLE)]  # the same seeds on two devices do not make six
    assert [v.scale["device"] for v in verdict(claim({"difference": pair(at_most=0)}), twice)] == ["cpu", "gpu"]
    # what the rule compares is not a scale
    both = [{**row, "dataset": name} for row in TABLE for name in ("x", "y") if row["arm"] == "a"]
    sets = {"a": {**q("a"), "where": {"dataset": "x", "z": 2}}, "b": {**q("a"), "where": {"dataset": "y", "z": 2}}, "margin": 0.1}
    assert len(verdict(claim({"equivalent": sets}), both)) == 1
    # a scope leaves out other data; a scale that lacks an arm is undecided if another has it
    (found,) = verdict(claim({"difference": pair(at_most=0)}, scope={"dataset": "none such"}), TABLE)
    assert found.verdict == "no data" and "dataset = none such" in found.reasons[0]
    lacks = [{**row, "preset": "paper"} for row in TABLE if row["arm"] == "a"]
    assert [v.verdict for v in verdict(claim({"difference": pair(at_most=0)}), [*TABLE, *lacks])] == ["supported", "undecided"]


def test_a_precondition_that_does_not_hold_leaves_it_undecided():
    first = {"label": "long enough", "value": {**q("a"), "at_least": 100}}
    (found,) = verdict(claim({"difference": pair(at_most=0)}, provided=first), TABLE)
    assert found.verdict == "undecided" and "long enough; here it is contradicted" in found.reasons[0]


def test_any_of_pays_for_its_chances_and_shows_its_parts():
    part = {"difference": pair(at_most=0)}
    alone, both = apply(TABLE, part, Terms()), apply(TABLE, {"any_of": [part, part]}, Terms())
    assert both.high - both.low > alone.high - alone.low and len(both.parts) == 2 and both.decided_by == 1


@pytest.mark.parametrize("rule, table, says", [
    ({"value": {"column": "msee", "at_most": 1}}, TABLE, r"no column 'msee'; did you mean mse\?"),
    ({"value": {**q("z9"), "at_most": 1}}, TABLE, "no row with arm = z9; there is arm: a, b, c"),
    ({"value": {"column": "mse", "where": {"arm": "a"}, "at_most": 1}}, TABLE, "4 rows of seed 0 with arm = a, expected one"),
    ({"value": {"column": "arm", "where": {"z": 2}, "take": "max", "at_most": 1}}, TABLE, "3 of 3 cells are no numbers, the first 'a'"),
    ({"value": {**q("a"), "at_most": 1}}, [{**row, "mse": ""} for row in TABLE], "no numbers, the first '' at seed 0"),
    ({"ratio": pair(at_most=1)}, rows(a=lambda z: 0, b=lambda z: 1), "values of at most 0"),
    ({"monotone": {**CURVE, "where": {"arm": "a", "z": 2}, "expect": "falls"}}, TABLE, "expected at least 2"),
    ({"monotone": {"column": "mse", "along": "z", "expect": "falls"}}, TABLE, "each once"),
    ({"value": {**CURVE, "where": {"arm": "a", "z": [1, 2]}, "take": "curvature", "at_most": 1}}, TABLE, "expected at least 3"),
    ({"difference": pair(at_most=0)}, [row for row in TABLE if (row["arm"] == "a") == (row["seed"] == "0")], "no seed has both arms"),
])  # fmt: skip
def test_a_table_that_cannot_decide_is_a_clear_error(rule, table, says):
    with pytest.raises(TableError, match=r"(?s)Q1: its rule cannot be decided from toy\.csv: .*" + says) as caught:
        verdict(claim(rule), table)
    assert caught.value.exit_code == 3


# the ledger's file


def write(path: Path, *claims_: dict, **top) -> Path:
    whole = {"sources": {"L": "slides <b>"}, "planned": ["toy"], "claims": list(claims_), **top}
    path.write_text(json.dumps(whole), encoding="utf-8")  # JSON is YAML
    return path


GOOD = {"id": "Q1", "source": "L", "place": "p", "statement": "s", "experiment": "toy", "rule": {"value": {"column": "mse", "at_most": 1}}}


@pytest.mark.parametrize("change, says", [
    ({"experiment": "tow"}, r"'tow' is neither built nor planned; did you mean toy\?.*`planned`"),
    ({"source": "Z"}, "source 'Z'"),
    ({"rules": 1}, r"unknown key 'rules'; did you mean rule\?"),
    ({"rule": {"values": {"column": "mse", "at_most": 1}}}, r"did you mean value\?"),
    ({"rule": {"value": {"column": "mse"}}}, "got 0 limits"),
    ({"rule": {"value": {"column": "mse", "at_most": 1, "at_least": 0}}}, "got 2 limits"),
    ({"rule": {"value": {"column": "mse", "at_most": "1e-5"}}}, "1.0e-5 a number"),
    ({"rule": {"value": {"column": "mse", "take": "slope", "at_most": 1}}}, "need `along`"),
    ({"rule": {"value": {"column": "mse", "take": "average", "at_most": 1}}}, "expected one of one, mean"),
    ({"rule": {"monotone": {"column": "mse", "along": "z", "expect": "grows"}}}, "expected falls or rises"),
    ({"rule": {"value": {"column": "mse", "where": {"z": {"over": 2}}, "at_most": 1}}}, "expected one of not, above"),
    ({"rule": {"all_of": [GOOD["rule"]]}}, "at least two rules"),
    ({"rule": {"equivalent": {"a": {"column": "m"}, "b": {"column": "m"}}}}, "no key margin"),
    ({"provided": {"value": 3}}, "provided, value: got 3"),
])  # fmt: skip
def test_a_ledger_that_cannot_be_read_names_the_row(tmp_path, change, says):
    with pytest.raises(ParameterError, match=r"(?s)claims\.yaml, Q1.*" + says) as caught:
        read_ledger(write(tmp_path / "claims.yaml", {**GOOD, **change}))
    assert caught.value.exit_code == 2


def test_a_ledger_with_an_id_twice_or_that_is_no_yaml_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="id Q1 given twice"):
        read_ledger(write(tmp_path / "claims.yaml", GOOD, GOOD))
    (tmp_path / "claims.yaml").write_text("claims: [", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"claims\.yaml"):
        read_ledger(tmp_path / "claims.yaml")
    with pytest.raises(ParameterError, match="No such file"):
        read_ledger(tmp_path / "none.yaml")


def test_the_course_ledger_is_complete():
    ledger = read_ledger()
    assert {c.id for c in ledger} >= IDS
    for c in ledger:
        assert c.place and c.statement and c.measure and columns_of(c.rule), c.id
        assert bool(c.published) == bool(c.published_in), c.id
        assert c.seeds >= 3 and re.fullmatch(r"[LBTDX]\d*(-\w+)?", c.id), c.id
        assert not re.search(r"(?<![\w.])/(?:home|Users|root|work)/", str(c)), c.id
    by_id = {c.id: c for c in ledger}
    assert by_id["B9"].seeds == 10 and {by_id[f"D{i}"].seeds for i in range(1, 12)} == {5}
    assert all("margin" in json.dumps(by_id[i].rule) for i in ("D5", "D6", "D10", "B6"))  # no difference is an equivalence test


def test_the_committed_tables_are_those_that_were_recorded_and_can_be_decided():
    for path in tables_root().glob("*.csv"):
        assert read_table(path.stem)
    assert {v.verdict for v in verdicts()} <= {"supported", "contradicted", "undecided", "no data"}
    if shutil.which("sha256sum"):
        assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tables_root()).returncode == 0


def test_an_edited_or_unrecorded_table_is_refused(tmp_path):
    path = tmp_path / "toy.csv"
    path.write_text("seed,mse\n0,1\n", encoding="utf-8")
    with pytest.raises(TableError, match=r"toy\.csv: .*SHA256SUMS does not have it.*ae-course collect toy"):
        read_table("toy", tmp_path)
    record_digest(path)
    assert read_table("toy", tmp_path) == [{"seed": "0", "mse": "1"}]
    path.write_text("seed,mse\n0,2\n", encoding="utf-8")
    with pytest.raises(TableError, match=r"toy\.csv: not as `collect` wrote it") as caught:
        read_table("toy", tmp_path)
    assert caught.value.exit_code == 3
    path.unlink()
    with pytest.raises(TableError, match="no such table"):
        read_table("toy", tmp_path)
    assert read_table("other", tmp_path) == []


def test_collect_records_the_digest_and_keeps_the_others(lab):
    results = lab.nbs / "experiments" / "results"
    results.mkdir()
    (results / "SHA256SUMS").write_text(f"{'0' * 64}  zebra.csv\n", encoding="utf-8")
    assert lab("run", "count", "--engine", "plain").returncode == 0
    assert lab("collect", "count").returncode == 0
    names = [line.split("  ")[1] for line in (results / "SHA256SUMS").read_text().splitlines()]
    assert names == ["count.csv", "zebra.csv"] and read_table("count", results)
    assert lab("collect", "count", "--out", "elsewhere.csv").returncode == 0 and not (lab.place / "SHA256SUMS").exists()


# the command, the page


def run(capsys, *args) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    claims.add_commands(parser.add_subparsers())
    args = parser.parse_args(["claims", *map(str, args)])
    code = args.do(args)
    return (code, *capsys.readouterr())


@pytest.fixture
def place(tmp_path):
    "A ledger of two claims, one of them with a table of hostile names."
    table = rows(noise=0.01, **{"a|b <script>alert(1)</script>": lambda z: 1 / z})
    text = "\n".join([",".join(table[0]), *(",".join(row.values()) for row in table)])
    (tmp_path / "toy.csv").write_text(text, encoding="utf-8")
    record_digest(tmp_path / "toy.csv")
    rule = {"value": {"column": "mse", "where": {"z": 2, "arm": "a|b <script>alert(1)</script>"}, "at_most": 1}}
    hostile = {**GOOD, "rule": rule, "statement": "a_b | <script>alert(2)</script> *x*"}
    write(tmp_path / "claims.yaml", hostile, {**GOOD, "id": "Q2", "experiment": "later"}, planned=["toy", "later"])
    return tmp_path


def test_the_command_prints_a_table_json_and_one_claim(place, capsys):
    options = ("--ledger", place / "claims.yaml", "--tables", place)
    code, out, err = run(capsys, *options)
    assert code == 0 and not err and max(map(len, out.splitlines())) <= 100
    assert re.search(r"Q1 +supported +0\.[45]\d* \[.*\] +laptop \[1\] +toy", out) and re.search(r"Q2 +no data", out)
    assert "[1] laptop: toy, all images, 5 epochs, seeds 0, 1, 2, cpu" in out
    code, out, _ = run(capsys, "Q1", *options)
    assert code == 0 and "Rule, fixed before the run" in out and "SUPPORTED at laptop" in out
    assert "ae-course sweep toy --grid seed=0,1,2" in out
    found = json.loads(run(capsys, "--json", *options)[1])
    assert [v["verdict"] for v in found] == ["supported", "no data"] and found[0]["seeds"] == ["0", "1", "2"]
    with pytest.raises(ParameterError, match=r"unknown claim 'Q11'; did you mean Q1\?"):
        run(capsys, "Q11", *options)


def test_the_command_refuses_an_edited_table_and_shows_the_rest(place, capsys):
    (place / "toy.csv").write_text((place / "toy.csv").read_text() + "\n", encoding="utf-8")
    code, out, err = run(capsys, "--ledger", place / "claims.yaml", "--tables", place)
    assert code == 3 and "toy.csv" in err and "ae-course collect toy" in err and "Q1" not in out and "Q2" in out


def test_the_page_holds_everything_and_escapes_it(place):
    page = as_markdown(verdicts(read_ledger(place / "claims.yaml"), place), {"L": "slides <b>"})
    assert "<script" not in page and "<b>" not in page and "a_b" not in page and escaped("a|b") == "a&#124;b"
    assert {line.count("|") for line in page.splitlines() if line.startswith("|")} == {3, 5}
    assert "### Q1: supported" in page and "### Q2: no data" in page and "at most 1" in page


def test_the_course_page_shows_every_claim():
    page = as_markdown(verdicts(), ledger_file()["sources"])
    for c in read_ledger():
        assert f"### {c.id}: " in page and escaped(c.statement) in page and escaped(c.place) in page
        assert not c.published or escaped(c.published) in page
    cells = json.loads((course_root() / "ledger.ipynb").read_text(encoding="utf-8"))["cells"]
    assert "verdicts()" in "".join(cells[-1]["source"])


def test_importing_is_light():
    heavy = ("torch", "scipy", "statsmodels", "pandas", "numpy", "yaml")
    code = f"import sys, ae_course.claims; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_verdict_without_findings_has_no_effect():
    assert Verdict(claim({}), "no data").effect == "-"


def test_of_several_parts_one_contradicts_only_beyond_its_own_chance():
    "Two parts: an interval that misses its limit at 95%, and holds it at 97.5%, leaves the whole undecided, and says which part it was."
    table = [{"seed": str(s), "mse": str(v), "arm": arm} for s, v in enumerate((1.0, 1.16, 1.32)) for arm in "ab"]
    low = interval([1.0, 1.16, 1.32]).low
    at = lambda limit: {"value": {"column": "mse", "where": {"arm": "a"}, "at_most": limit}}
    assert apply(table, at(low - 0.01), Terms()).verdict == "contradicted"
    both = apply(table, {"all_of": [at(9), at(low - 0.01)]}, Terms())
    assert both.verdict == "undecided" and both.parts[1].notes[-1].startswith("part 2 is contradicted as a question of its own")
    assert apply(table, {"all_of": [at(9), at(0.1)]}, Terms()).verdict == "contradicted"


def test_steps_are_judged_each_by_its_interval():
    "A curve that falls by a deviation a step: at ten seeds the smallest of many noisy steps lies below zero, and contradicts nothing."
    rng = random.Random(0)
    table = [{"seed": str(s), "z": str(z), "mse": repr(8 - z + rng.gauss(0, 1))} for s in range(10) for z in range(9)]
    found = apply(table, {"monotone": {"column": "mse", "along": "z", "expect": "falls"}}, Terms())
    assert found.verdict in ("supported", "undecided") and len(found.parts) == 8
    assert min(part.effect for part in found.parts) == found.parts[0].effect and found.parts[0].words.startswith("from ")
