"""What stands in a run folder, a settings file or an argument is input, not code."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from test_run_records import Page

from samo_jax.experiments.__main__ import main
from samo_jax.experiments.problems.tasks import CLASSIFICATION
from samo_jax.experiments.reports import benchmark_page
from samo_jax.experiments.reports.pages import fenced, write_page
from samo_jax.experiments.reports.tables import literal, markdown_table, spread
from samo_jax.experiments.training import schema
from samo_jax.experiments.training.columns import Column
from samo_jax.experiments.training.folders import inside, opened
from samo_jax.experiments.training.grammar import COMBINER_NAMES, EXAMPLE
from samo_jax.experiments.training.records import Records
from samo_jax.experiments.training.runs import Run

import small_runs
from tiers import mostly_slow

COLUMNS = [Column(task, "accuracy", True, "%") for task in ("left", "right")]
SETTINGS = {"benchmark": "digits", "split": "test", "seeds": 2, "epochs": 2}
NAN = float("nan")


def fields(left=80.0, right=60.0, **others):
    """Those of a finished run."""
    metrics = {"left": {"accuracy": left}, "right": {"accuracy": right}}
    weights = {"left": 0.4, "right": 0.6}
    agreement = {"cosine": 0.1, "conflicts": 0.0, "weights": weights}
    return {
        "method": "fairgrad",
        "seed": 0,
        "metrics": metrics,
        "metrics_curve": [[1, metrics], [2, metrics]],
        "loss_curve": [2.0, 1.0],
        "seconds_per_step": 0.1,
        "agreement_curve": [[1, agreement], [2, agreement]],
    } | others


def document(*runs, **settings):
    config = SETTINGS | {"methods": ["fairgrad", "mean"], "columns": COLUMNS}
    config |= {"built": {}}
    return {"config": config | settings, "runs": list(runs)}


@pytest.fixture
def folder(tmp_path):
    """Of a run of `digits`, without results."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = SETTINGS | {"methods": ["fairgrad", "mean"], "rho": 0.1, "alpha": 0.5}
    (folder / "config.json").write_text(json.dumps(config | {"tensorboard": False}))
    return folder


def put(folder, content, name="results.json"):
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    return folder


def resume(folder):
    """Read the records of a run."""
    config = json.loads((folder / "config.json").read_text())
    return Records(folder, config, COLUMNS, {"fairgrad": "samo_jax.multitask(a)"})


def refused(call, *args):
    """The one line that a call ends with."""
    with pytest.raises(SystemExit) as ended:
        call(*args)
    message = str(ended.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


@pytest.fixture
def victim(tmp_path):
    """A folder outside the run, that stays as it is."""
    folder = tmp_path / "victim" / "seed0"
    folder.mkdir(parents=True)
    (folder / "file").write_text("kept")
    yield folder.parent
    assert [*folder.parent.rglob("*")] == [folder, folder / "file"]
    assert (folder / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "key",
    [
        {"method": "{victim}"},
        {"method": "../../victim"},
        {"method": "mgda"},
        {"method": ""},
        {"method": ["mean"]},
        {"method": "mean\0"},
        {"method": "x" * 100_000},
        {"seed": "0/../../../../victim/seed0"},
        {"seed": "0"},
        {"seed": True},
        {"seed": 0.0},
        {"seed": -1},
        {"seed": 2},
        {"seed": 10**400},
    ],
    ids=repr,
)
def test_resume_takes_only_methods_and_seeds_of_its_configuration(folder, victim, key):
    text = json.dumps(document(fields(), fields(**key)))
    put(folder, text.replace("{victim}", str(victim)))
    (folder / "checkpoints/mean").mkdir(parents=True)
    message = refused(resume, folder)
    assert message.startswith(f"{folder}/results.json cannot be read: runs[1]")
    assert message.endswith(". Without it, --resume trains anew")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/etc",
        "../a",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "x" * 256,
        "é" * 128,
    ],
)
def test_names_of_paths_are_names(tmp_path, name):
    assert str(tmp_path) in refused(inside, tmp_path, "a", name)


def test_methods_are_names_of_paths(tmp_path):
    for method in (*COMBINER_NAMES, EXAMPLE):
        assert inside(tmp_path, method, "seed0") == tmp_path / method / "seed0"


def test_runs_of_other_transformations_are_not_gone_on_with(folder):
    """Of another version, whose defaults were others, or that did not say."""
    put(folder, document(fields(), built={"fairgrad": "samo_jax.multitask(a)"}))
    assert set(resume(folder).results) == {"fairgrad"}
    put(folder, document(fields(), built={"fairgrad": "samo_jax.multitask(b)"}))
    message = refused(resume, folder)
    assert "has 'fairgrad' as 'samo_jax.multitask(b)', which is now" in message
    old = document(fields())
    del old["config"]["built"]
    put(folder, old)
    assert "config lacks 'built'" in refused(resume, folder)


def test_old_spellings_are_refused_by_name(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    put(folder, config | {"methods": ["fairgrad+global"]}, "config.json")
    printed = small_runs.last_line(capsys, "digits", "--resume", str(folder))
    assert "no perturbation 'global', the nearest is global_sam" in printed


FILES = ["metrics.jsonl", "results.json.partial", "summary.png", "report.html"]


@pytest.mark.parametrize(
    "link",
    ["checkpoints", "checkpoints/fairgrad", "tensorboard", ".lock", *FILES],
)
def test_no_link_leads_out_of_a_run_folder(folder, victim, link):
    """Neither for a process that writes, nor for one that removes."""
    (folder / link).parent.mkdir(exist_ok=True)
    is_file = link in (".lock", *FILES)
    (folder / link).symlink_to(victim / "seed0" / "file" if is_file else victim)
    put(folder, document(fields()))
    message = refused(small_runs.main, "digits", "--resume", folder)
    assert message.startswith(f"{folder / link} is a link or a special file")
    if not is_file:
        assert "link" in refused(inside, folder, *link.split("/"), "seed0")


def test_nothing_waits_for_a_pipe(folder):
    os.mkfifo(folder / "results.json")
    assert "a special file" in refused(small_runs.main, "digits", "--resume", folder)
    assert "not a regular file" in refused(main, ["compare", str(folder)])


WHOLE = json.dumps(document(fields()))
NESTED = b"[" * 100_000
DAMAGED = {
    "empty": b"",
    "half": WHOLE[: len(WHOLE) // 2],
    "binary": bytes(range(256)),
    "not UTF-8": WHOLE.replace("fairgrad", "fair\xff").encode("latin-1"),
    "zeros": b"\0" * 1000,
    "nested": NESTED,
    "nested in a run": WHOLE.encode().replace(b"80.0", NESTED),
    "huge integer": WHOLE.replace("80.0", "9" * 5000),
    "integer that is no float": WHOLE.replace("80.0", "9" * 400),
    "list": [],
    "no runs": {"config": {}},
    "runs by name": document() | {"runs": {"a": 1}},
    "20,000 keys": dict.fromkeys(map(str, range(20_000))),
    "run of text": document("run"),
    "without a field": document({**fields(), "seconds_per_step": None}),
    "with another field": document(fields(secret=1)),
    "text for a number": document(fields(left="80")),
    "true for a number": document(fields(left=True)),
    "list for an object": document(fields(metrics=[])),
    "other metrics": document(fields(metrics={"left": {"f1": 1.0}})),
    "another task": document(fields(metrics={"[/a]": {"accuracy": 1.0}})),
    "name of two lines": document(fields(metrics={"a\nb": {"accuracy": 1.0}})),
    "twice": document(fields(), fields()),
}
UNFINISHED = {
    "epochs": document(fields(loss_curve=[1.0])),
    "evaluations": document(fields(metrics_curve=[])),
    "ragged evaluations": document(fields(metrics_curve=[[1]])),
    "diagnoses": document(
        fields(agreement_curve=[[2, {"cosine": 0, "conflicts": 0, "weights": None}]])
    ),
    "weights": document(
        fields(
            agreement_curve=[
                [e, {"cosine": 0, "conflicts": 0, "weights": {"a": 1}}] for e in (1, 2)
            ]
        )
    ),
    "no time": document(fields(seconds_per_step=0)),
    "endless": document(fields(seconds_per_step=NAN)),
}


@pytest.mark.parametrize("damage", [*DAMAGED, *UNFINISHED])
def test_damaged_results_get_one_line(folder, damage):
    put(folder, (DAMAGED | UNFINISHED)[damage])
    message = refused(resume, folder)
    assert message.startswith(f"{folder}/results.json cannot be read: ")
    if damage in DAMAGED:
        assert refused(main, ["compare", str(folder)]).startswith(message[:40])


@pytest.mark.parametrize(
    "columns", [None, [], [["left"]], [["left", "accuracy", "yes", "", None]], "left"]
)
def test_compare_checks_columns(folder, columns):
    put(folder, document(fields(), columns=columns))
    assert "cannot be read" in refused(main, ["compare", str(folder)])


LINE = {"epoch": 1, "loss": {"left": 1.0}, "metrics": {"left": {"accuracy": NAN}}}
LINE |= {"agreement": None, "method": "fairgrad", "seed": 0}


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"\xff\xfe", b"\0\0", b"[]", b"1", NESTED, b'{"method": "mean"}']
    + [json.dumps(LINE | other).encode() for other in ({"seed": "0"}, {"more": 1})],
)
def test_damaged_lines_get_one_line(folder, line):
    put(folder, document(fields()))
    put(folder, json.dumps(LINE).encode() + b"\n" + line + b"\n", "metrics.jsonl")
    message = refused(resume, folder)
    assert message.startswith(f"--resume: {folder}/metrics.jsonl, line 2, cannot be")


def test_lines_of_other_runs_and_a_torn_one_are_dropped(folder):
    put(folder, document(fields()))
    first, *others = (json.dumps(LINE | {"seed": seed}) + "\n" for seed in (0, 1))
    torn = b'{"method": "\xc3'
    put(folder, "".join([first, *others]).encode() + torn, "metrics.jsonl")
    resume(folder)
    assert (folder / "metrics.jsonl").read_text() == first


def test_conform_is_strict_and_says_where():
    kind = dict[str, list[tuple[int, float | None]]]
    good = {"a": [[1, None], [2, 0.5], [3, 4]]}
    assert schema.conform(good, kind, "it") == {"a": [(1, None), (2, 0.5), (3, 4)]}
    for bad, message in (
        ([[1]], "it['a'][0] must be a list of 2, got a list"),
        ([[1, "x"]], "it['a'][0][1] must be a number, got 'x'"),
        ([[1.0, 1]], "it['a'][0][0] must be an integer, got 1.0"),
        ({}, "it['a'] must be a list, got an object"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            schema.conform({"a": bad}, kind, "it")


# Settings.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(dict.fromkeys(map(str, range(20_000)))), "'0': is no setting"),
        ('{"methods": ["mean", "--config={file}"]}', "must not begin with a dash"),
        ('{"methods": ["--resume={folder}"]}', "must not begin with a dash"),
        ('{"methods": ["mean", "--help"]}', "must not begin with a dash"),
        ('{"config": "{file}"}', "'config': is no setting"),
        ('{"methods": [["mean"]]}', "must be a value or a list of values, got a list"),
        ('{"rho": {"a": 1}}', "must be a value or a list of values, got an object"),
        ('{"seeds": 1000000000}', "--seeds: must be at most 1000, got '1000000000'"),
        ('{"seeds": 1e400}', "--seeds: must be a positive integer, got 'inf'"),
        ('{"seeds": [1, 2]}', "unrecognized arguments: '2'"),
        ('{"rho": "' + "9" * 100_000 + '"}', "must be a finite non-negative number"),
        ('{"\\u001b[2J\\n": 1}', "'\\x1b[2J\\n': is no setting"),
        (NESTED, "it is nested too deeply"),
        (b"\xff\xfe{}", "codec can't decode"),
        (b"\0", "must be a JSON file"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hostile_settings_get_one_line(folder, capsys, content, message):
    file = folder / "settings.json"
    if isinstance(content, str):
        content = content.replace("{file}", str(file)).replace("{folder}", str(folder))
    put(folder, content, file.name)
    printed = small_runs.last_line(capsys, "digits", "--config", str(file))
    assert message in printed
    assert printed.strip().isprintable()
    assert len(printed) < 2500


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_settings_nested_or_too_long_get_one_line(tmp_path, capsys, suffix):
    text = {"json": '{"rho": ' + "[" * 10_000, "toml": "rho = " + "[" * 10_000}[suffix]
    put(tmp_path, text, f"a.{suffix}")
    path = str(tmp_path / f"a.{suffix}")
    assert "nested too deeply" in small_runs.last_line(
        capsys, "digits", "--config", path
    )
    put(tmp_path, "rho = 0x" + "f" * 10_000, "b.toml")
    path = str(tmp_path / "b.toml")
    assert "4300 digits" in small_runs.last_line(capsys, "digits", "--config", path)


@pytest.mark.parametrize("option", ["--out", "--config", "--resume", "--data"])
@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "y/" * 5000, "\udcff"])
def test_names_of_no_file_get_one_line(capsys, option, name):
    printed = small_runs.last_line(capsys, "qm9", option, name)
    assert f"argument {option}: must be a path, got " in printed
    assert len(printed) < 300


@pytest.mark.parametrize(
    "args",
    [
        ["digits", "--seeds", "1000000000"],
        ["digits", "--epochs", "1000000000"],
        ["digits", "--join-timeout", "inf", "--distributed"],
        ["qm9", "--width", "1e30"],
        ["qm9", "--batch-size", "9" * 5000],
        ["modalities", "--seeds", "1000000000"],
        ["modalities", "--epochs", "1000000000"],
        ["local_parts", "--tuning-seeds", "1000000000"],
        ["ablation", "--sweep-seeds", "1000000000"],
        ["toy", "--seed", "9" * 30],
        ["toy", "--seed", "-1"],
    ],
    ids=" ".join,
)
def test_numbers_have_bounds(capsys, args):
    printed = small_runs.last_line(capsys, *args)
    assert f"argument {args[1]}: must be " in printed
    assert len(printed) < 300


# One process.


def test_a_folder_is_for_one_process(folder):
    with opened(folder):
        message = refused(small_runs.main, "digits", "--resume", folder)
        assert message.startswith(f"{folder} is in use by another process")
        put(folder, "{}", "config.json")
        for study in ("local_parts", "modalities", "ablation"):
            assert message == refused(main, [study, "--resume", str(folder)])
    with opened(folder):
        pass


def test_a_killed_process_leaves_no_lock(folder):
    script = (
        "import pathlib, sys, time\n"
        "from samo_jax.experiments.training.folders import opened\n"
        "with opened(pathlib.Path(sys.argv[1])):\n"
        "    print('has it', flush=True)\n"
        "    time.sleep(100)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "has it\n"
        assert "is in use" in refused(opened(folder).__enter__)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    with opened(folder):
        pass


# Names in tables and pages.

HOSTILE = ["![x](/etc/hostname)", "[/a]", "[link](file:///etc)", "<script>x</script>"]
HOSTILE += [
    "a|b",
    "`code`",
    "*bold*",
    "_it_",
    "&amp;",
    "\\",
    "~~x~~",
    ":smile:",
    "$\\frac{$",
]


def test_names_are_text_in_pages(tmp_path):
    """What is read from the page is the name, and no file is in it."""
    results = {}
    tasks = dict.fromkeys(HOSTILE[:6], CLASSIFICATION)
    for number, method in enumerate(["mean", "fairgrad"]):
        metrics = {name: {"accuracy": 1.0 + number} for name in tasks}
        weights = dict.fromkeys(tasks, 0.5)
        agreement = {"cosine": 0.1, "conflicts": 0.0, "weights": weights}
        curve = [(1, agreement)]
        results[method] = {0: Run(metrics, [(1, metrics)], [1.0], 0.1, curve)}
    config = {"benchmark": "digits", "data": "a\n```\n![x](/etc/hostname)\n"}
    caption = " ".join(HOSTILE)
    records = Records(tmp_path, config, [], {method: "x" for method in results})
    records.results = results
    benchmark_page.write_report(records, tasks, caption, "Summary")
    html = (tmp_path / "report.html").read_text()
    assert html.count("<img") == html.count("data:image/png;base64,") == 2
    assert "<script" not in html
    assert "<a " not in html
    rows = benchmark_page.summarize(results, tasks)
    assert Page(html).cells == [cell for row in rows for cell in row]


def test_any_name_is_text_in_a_table(tmp_path):
    rows = [["method", "x"], *([name, "1"] for name in HOSTILE)]
    write_page(tmp_path, "a<b", markdown_table(rows), ())
    page = Page((tmp_path / "report.html").read_text())
    assert page.rows == rows
    assert page.pictures == []


def test_only_its_own_pictures_are_in_a_page(tmp_path):
    (tmp_path / "own.png").write_bytes(b"own")
    (tmp_path / "other.png").write_bytes(b"other")
    text = "![a](own.png) ![b](other.png) ![c](/etc/hostname) ![<d>](../own.png)"
    write_page(tmp_path, "title", text, ["own.png"])
    page = Page((tmp_path / "report.html").read_text())
    assert page.pictures == ["data:image/png;base64,b3du"]


def test_fences_hold():
    for text in ("a", "```", "a\n````\n![x](/y)", "~~~"):
        first, *middle, last = fenced(text, "sh").split("\n")
        assert "\n".join(middle) == text
        assert f"{last}sh" == first
        assert last not in text


def test_names_are_text_on_a_terminal(tmp_path, capsys):
    """The folder's name, too, which a table has where two share a method."""
    folders = []
    for name in ("[/a]", "[bold]b[/bold] :smile: ![x](y)"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        put(folder, "{}", "config.json")
        runs = [fields(method=method) for method in ("mean", *HOSTILE)]
        folders.append(str(put(folder, document(*runs, benchmark="[/b]"))))
    out = tmp_path / "[/out]"
    assert main(["compare", *folders, "--out", str(out)]) == 0
    printed = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    for name in HOSTILE:
        assert name in printed
    assert "[/b], test examples" in printed.replace("\n", " ")
    assert f"Saved {out}" in printed.replace("\n", "")
    assert literal(f"mean ({folders[1]})") in (out / "comparison.md").read_text()


# Runs that diverged.


def test_a_diverged_run_is_a_result(folder, tmp_path, capsys):
    nan = dict.fromkeys(("cosine", "conflicts"), NAN) | {"weights": None}
    runs = [
        fields(),
        fields(NAN, float("inf"), seed=1, loss_curve=[1.0, NAN]),
        fields(0.0, 50.0, method="mean", agreement_curve=[[1, nan], [2, nan]]),
        fields(0.0, 60.0, method="mean", seed=1, agreement_curve=[[1, nan], [2, nan]]),
    ]
    put(folder, document(*runs))
    assert small_runs.main("digits", "--resume", folder) == 0
    table = (folder / "report.md").read_text()
    assert "| fairgrad | nan ± nan | inf ± nan | nan ± nan | 1.00 |" in table
    # The first method has a diverged run, and is what the others are compared with.
    assert "It leaves out left accuracy, right accuracy: there the baseline is" in table
    out = tmp_path / "out"
    compared = ["compare", str(folder), "--baseline", "mean", "--out", str(out)]
    assert main(compared) == 0
    page = (out / "comparison.md").read_text()
    assert "| mean | 2 | 0.00 ± 0.00 | 55.0 ± 63.5 | nan ± nan |" in page
    assert "nan" in capsys.readouterr().out


def test_a_baseline_of_zero_is_left_out(tmp_path):
    put(tmp_path, "{}", "config.json")
    runs = [
        fields(0.0, 50.0, method="single-task"),
        fields(10.0, 60.0, method="mean"),
    ]
    put(tmp_path, document(*runs))
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/comparison.md").read_text()
    assert "| single-task | 1 | 0.00 | 50.0 | 0.00 |" in page
    assert "| mean | 1 | 10.00 | 60.0 | -20.00 |" in page
    assert "It leaves out left accuracy: there the baseline is 0 or not finite." in page


def test_spread_of_what_is_not_finite():
    assert [spread([x]) for x in (NAN, np.inf, -np.inf)] == ["nan", "inf", "-inf"]
    assert spread([1.0, NAN]) == "nan ± nan"


# Other studies.


def study_folder(tmp_path, **settings):
    folder = tmp_path / "study"
    folder.mkdir()
    return put(folder, settings, "config.json")


@pytest.mark.parametrize("damage", mostly_slow(DAMAGED, but=8))
def test_studies_refuse_damaged_results(tmp_path, damage):
    """`modalities`, `local_parts` and `ablation` read by the same function."""
    content = DAMAGED[damage]
    methods = ["fairgrad", "mean"]  # of `DAMAGED`
    settings = {"fusion": "late", "seeds": 2, "epochs": 1, "methods": methods}
    folder = put(study_folder(tmp_path, **settings), content)
    message = refused(main, ["modalities", "--resume", str(folder)])
    assert message.startswith(f"{folder}/results.json cannot be read: ")
    problem = folder / "digits"
    problem.mkdir()
    put(problem, content)
    (folder / "results.json").unlink()
    for study, seeds in (("local_parts", "tuning_seeds"), ("ablation", "sweep_seeds")):
        settings = {"problems": ["digits"], "methods": ["fairgrad"], "epochs": 1}
        settings |= {"minima": 1} if study == "ablation" else {}
        settings |= {"seeds": 2, seeds: 1}
        put(folder, settings, "config.json")
        message = refused(main, [study, "--resume", str(folder)])
        assert message.startswith(f"{problem}/results.json cannot be read: ")
