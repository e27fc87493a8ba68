"""The command ``python -m coconut_ds.probe``: files of each mode, and what it refuses."""

import csv
import json
import random
from pathlib import Path

import pytest
from making_graphs import make_graph_reasoner
from making_probing import QUESTION, make_reasoner
from matplotlib.image import imread

from coconut_ds.data.problem import load_problems
from coconut_ds.data.prosqa import generate_problem
from coconut_ds.probe import main
from coconut_ds.probing import measures
from coconut_ds.probing.counterfactuals import Counterfactuals, counterfactuals
from coconut_ds.probing.frontier_probes import Readable, readable_frontiers
from coconut_ds.probing.graph_values import GraphView, graph_views, height_values, parallelism
from coconut_ds.probing.hop_effects import HopEffects, effects_by_hops
from coconut_ds.probing.parts import KeptParts
from coconut_ds.probing.reports import FILES
from coconut_ds.probing.superposition import GroupValue, superposition
from coconut_ds.reasoner import load_reasoner
from coconut_ds.results import Identity, ResultFolder
from coconut_ds.studies.thoughts import main as study


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "model"
    make_reasoner("llama").save(folder)
    return folder


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> Path:
    """Sums of 1, 2 and 3, as a file."""
    path = tmp_path_factory.mktemp("data") / "sums.json"
    terms = [f"{a} + {b} + {c}" for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2)]
    problems = [{"question": q, "steps": [q[0]], "answer": q[-1]} for q in terms]
    path.write_text(json.dumps(problems), encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> set[str]:
    """Names of the pictures; each shows something."""
    found = set()
    for path in folder.glob("*.png"):
        image = imread(path)
        assert image.shape[0] > 200
        assert image[..., :3].std() > 0.02, path.name
        found.add(path.name)
    return found


def test_think_writes_what_the_api_finds(checkpoint, tmp_path, capsys):
    """A question with characters that Hydra would interpret, and tokens to look up."""
    question = "1 + 2 = $3$, {a}: [x]"
    line = [f"checkpoint={checkpoint}", f"question={question}", "tokens=3, =", "top_k=3", f"out={tmp_path}"]
    assert main([*line, "max_new_tokens=4"]) == 0
    said = capsys.readouterr().out
    assert question in said
    assert str(tmp_path) in said
    found = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert found["trace"]["question"] == question
    assert [one["num_thoughts"] for one in found["answers"]] == [0, 1, 2, 3]
    states = rows(tmp_path / "states.csv")
    assert len(states) == 3 * 3 + 1
    last = found["trace"]["thoughts"][2]["decoded"]
    row = next(one for one in states if (one["state"], one["layer"]) == ("3", "2"))
    assert [row["token 1"], float(row["p 1"])] == [last["tokens"][0], last["probabilities"][0]]
    assert float(row["log p ="]) == last["chosen"][1]["log_probability"]
    assert pictures(tmp_path) == {"thoughts.png", "layers.png"}


def test_a_model_without_thoughts_is_looked_into_too(tmp_path, problems):
    make_reasoner("gpt2", "no_thoughts").save(tmp_path / "model")
    line = [f"checkpoint={tmp_path / 'model'}", f"data={problems}", "n_thoughts=0", "max_new_tokens=3"]
    assert main(["think", *line, "problem=2", f"out={tmp_path / 'think'}"]) == 0
    assert main(["effects", *line, f"out={tmp_path / 'effects'}"]) == 0
    made = json.loads((tmp_path / "effects" / "effects.json").read_text(encoding="utf-8"))
    assert made["effects"] == []
    assert {one["state"] for one in made["probes"]} == {"before the text"}


def test_intervene_and_effects_write_their_tables(checkpoint, problems, tmp_path, capsys):
    line = [f"checkpoint={checkpoint}", f"data={problems}", "max_new_tokens=3"]
    asked = [*line, f"question={QUESTION}", "kind=patch", "thought=2", "draws=3", f"pause={checkpoint}"]
    assert main(["intervene", *asked, f"out={tmp_path / 'one'}"]) == 0
    made = json.loads((tmp_path / "one" / "intervention.json").read_text(encoding="utf-8"))
    arms = [made["effect"], *made["controls"]]
    assert {"patch", "thought 1", "thought 3", "pause"} <= {arm["name"] for arm in arms}
    said = capsys.readouterr().out
    assert f"unchanged {made['effect']['kept']:4.0%}  became the donor's {made['effect']['became_donors']:4.0%}" in said
    table = rows(tmp_path / "one" / "intervention.csv")
    assert len(table) == sum(len(arm["outcomes"]) for arm in arms)
    assert [float(row["change"]) for row in table if row["arm"] == "patch"] == [
        outcome["change"] for outcome in made["effect"]["outcomes"]
    ]
    # The model is used as its own pausing control, so the control equals the effect.
    for one, other in zip(arms[-1]["outcomes"], made["effect"]["outcomes"], strict=True):
        assert (one["text"], one["kept"]) == (other["text"], other["kept"])
        assert one["change"] == pytest.approx(other["change"], abs=1e-3)
    assert pictures(tmp_path / "one") == {"intervention.png"}
    assert main(["effects", *line, "draws=2", f"out={tmp_path / 'all'}"]) == 0
    said = capsys.readouterr().out
    made = json.loads((tmp_path / "all" / "effects.json").read_text(encoding="utf-8"))
    zero = [one["kept"] for one in made["effects"] if one["name"] == "zero"]
    shares = [f"{100 * m['estimate']:.0f} ({100 * m['low']:.0f}–{100 * m['high']:.0f})" for m in zero]
    assert f"| zero: unchanged | {' | '.join(shares)} |" in said
    for name, count in (("effects", len(made["effects"])), ("probes", 8), ("sweep", 4)):
        assert len(rows(tmp_path / "all" / f"{name}.csv")) == count
    assert {one["thought"] for one in made["effects"]} == {1, 2, 3}
    # Half of the 18 problems are used only to fit the probes.
    assert {one["num_scored"] for one in made["probes"]} == {9}
    assert pictures(tmp_path / "all") == {"sweep.png", "probes.png", "effects.png"}


def test_attention_and_patch_write_what_they_print(checkpoint, problems, tmp_path, capsys):
    line = [f"checkpoint={checkpoint}", f"data={problems}", "max_new_tokens=3"]
    assert main(["attention", *line, f"out={tmp_path / 'attention'}"]) == 0
    weights = rows(tmp_path / "attention" / "attention.csv")
    sums: dict[tuple[str, str, str], float] = {}
    for one in weights:
        key = (one["layer"], one["head"], one["from"])
        sums[key] = sums.get(key, 0.0) + float(one["weight"])
    assert list(sums.values()) == pytest.approx([1.0] * len(sums))
    assert {name for _, _, name in sums} == {"question", "thought 1", "thought 2", "thought 3", "text"}
    assert pictures(tmp_path / "attention") == {"attention.png"}
    assert main(["patch", *line, f"out={tmp_path / 'patch'}"]) == 0
    made = json.loads((tmp_path / "patch" / "patching.json").read_text(encoding="utf-8"))
    cells = rows(tmp_path / "patch" / "patching.csv")
    assert [float(one["effect"]) for one in cells if one["grid"] == "patch"] == [
        cell["effect"] for row in made["effect"]["cells"] for cell in row
    ]
    assert {one["grid"] for one in cells} >= {"patch", "random"}
    assert pictures(tmp_path / "patch") == {"patching.png"}
    assert f"{made['effect']['cells'][2][1]['effect']:10.2f}" in capsys.readouterr().out


def test_graph_writes_the_figures_of_any_graph_checkpoint(tmp_path):
    """The files contain the numbers of the functions, whose own tests check them by hand."""
    problems = [generate_problem(random.Random(f"probe/{index}")) for index in range(6)]
    (tmp_path / "graphs.json").write_text(json.dumps([one.as_dict() for one in problems]), encoding="utf-8")
    make_graph_reasoner("text", problems).save(tmp_path / "model")
    out = tmp_path / "out"
    line = [f"checkpoint={tmp_path / 'model'}", f"data={tmp_path / 'graphs.json'}", f"out={out}"]
    assert main(["graph", *line, "problem=1"]) == 0
    reasoner, problems = load_reasoner(tmp_path / "model"), load_problems(tmp_path / "graphs.json")
    views = graph_views(reasoner, problems, frontier_only=True)
    assert json.loads((out / "values.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps([one.as_dict() for one in views])
    )
    curves = json.loads((out / "parallelism.json").read_text(encoding="utf-8"))
    assert curves == json.loads(json.dumps([one.as_dict() for one in parallelism(views)]))
    assert [one["num_thoughts"] for one in curves] == [0, 1, 2]
    heights = rows(out / "heights.csv")
    assert len(heights) == len(height_values(views))
    assert {row["definition"] for row in heights} == {"shortest", "longest"}
    groups = rows(out / "groups.csv")
    assert [float(row["value"]) for row in groups] == [one.value.estimate for one in superposition(reasoner, problems)]
    assert json.loads((out / "counterfactuals.json").read_text(encoding="utf-8"))["num_problems"] == 6
    assert json.loads((out / "graph.json").read_text(encoding="utf-8"))["question"] == problems[1].question
    readable = json.loads((out / "readable.json").read_text(encoding="utf-8"))
    # Half of the problems are only used for the fit.
    assert (readable["num_fit"], readable["num_scored"]) == (3, 3)
    table = rows(out / "readable.csv")
    assert [float(row["thought_state_precision"]) for row in table] == [
        one["thought_state"]["precision"]["estimate"] for one in readable["hops"]
    ]
    effects = effects_by_hops(reasoner, problems)
    found = json.loads((out / "interventions.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps([one.as_dict() for one in effects]))
    drawn = {"graph.png", "parallelism.png", "heights.png", "groups.png", "readable.png", "interventions.png"}
    assert pictures(out) == drawn
    # What an interrupted probe has kept is what it computed.
    parts, found = KeptParts(ResultFolder(tmp_path / "kept", Identity({}), ())), counterfactuals(reasoner, problems)
    for kind, value in (
        (tuple[GraphView, ...], tuple(views)),
        (tuple[GroupValue, ...], tuple(superposition(reasoner, problems))),
        (Counterfactuals, found),
        (Readable, readable_frontiers(reasoner, problems[:3], problems[3:])),
        (tuple[HopEffects, ...], tuple(effects)),
    ):
        assert parts.get(str(kind), kind, lambda value=value: value) == parts.get(str(kind), kind, stopped) == value


def stopped(*arguments, **more):
    raise KeyboardInterrupt


def test_an_interrupted_probe_continues_with_the_part_it_was_at(checkpoint, problems, tmp_path, monkeypatch, capsys):
    """Its files are those of a probe left alone; a part that is damaged is computed again."""
    line = ["effects", f"checkpoint={checkpoint}", f"data={problems}", "max_new_tokens=2", "num_problems=4"]
    assert main([*line, f"out={tmp_path / 'whole'}"]) == 0
    out = [f"out={tmp_path / 'stopped'}"]
    for name, kept in (("linear_probes", ["answers"]), ("measure_effects", ["answers", "probes"])):
        with monkeypatch.context() as patch:
            patch.setattr(measures, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                main([*line, *out])
        (folder,) = (tmp_path / "stopped" / ".partial").iterdir()
        assert sorted(path.stem for path in folder.iterdir()) == kept
    path = folder / "probes.json"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(measures, "sweep", stopped)
        assert main([*line, *out]) == 0
    said = capsys.readouterr().err
    assert "answers: computed before, and read from" in said
    assert "probes.json: is damaged (its SHA-256 differs) and is computed again" in said
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "stopped")]
    for each in files:
        del each["identity.json"]
    assert files[0] == files[1]
    # A result whose file has changed since is not shown.
    (tmp_path / "stopped" / "sweep.csv").write_text("")
    assert main([*line, *out]) == 2
    assert "its results are damaged: sweep.csv has 0 bytes, expected" in capsys.readouterr().err


def test_each_question_keeps_its_own_results_and_the_same_line_finds_them(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("draw_thoughts", "draw_layers", "draw_report"):
        monkeypatch.setattr(f"coconut_ds.probing.figures.{name}", lambda made, path: path.write_bytes(b""))
    line = [f"checkpoint={checkpoint}", "max_new_tokens=2", "n_thoughts=1"]

    def found() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert main([*line, "question=1 + 2"]) == 0
    first, said = found(), capsys.readouterr().out
    assert {path.name for path in first} == {*FILES[:6], "summary.txt", "identity.json"}
    assert main([*line, "question=1 + 2"]) == 0
    told = "computed before; this is the stored summary (overwrite=true computes again)\n"
    assert capsys.readouterr().out == told + said
    for more in (["question=3"], ["question=1 + 2", "top_k=2"]):
        assert main([*line, *more]) == 0
    assert first.items() <= found().items()
    assert len(list(tmp_path.glob("outputs/probe/*/think-*/summary.txt"))) == 3
    assert main([*line, "question=1 + 2", "out=here"]) == 0
    kept = found()
    assert main(["intervene", *line, "question=3", "kind=zero", "out=here"]) == 2
    assert "question ('1 + 2' there, '3' now)" in capsys.readouterr().err
    assert main([*line, "question=3", "tokens=nope", "out=new"]) == 2
    assert found() == kept
    assert main(["intervene", *line, "question=3", "kind=zero", "out=here", "overwrite=true"]) == 0
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert names == {"intervention.json", "intervention.csv", "intervention.png", "summary.txt", "identity.json"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["dream", "checkpoint=x"],
            "dream: no such mode; expected one of think, intervene, effects, attention, patch, graph, study",
        ),
        (["question=1"], "checkpoint: missing; set checkpoint="),
        (["checkpoint=CHECKPOINT"], "no question; set question="),
        (["effects", "checkpoint=CHECKPOINT", "question=1"], "effects needs problems; set data="),
        (["checkpoint=nowhere", "question=1"], "checkpoint=nowhere: no such folder"),
        (["checkpoint=CHECKPOINT", "question=1", "tokens=nope"], "'nope' is unknown to the tokenizer"),
        (["checkpoint=CHECKPOINT", "data=DATA", "problem=99"], "problem=99: there are 18; expected 0 to 17"),
        (["intervene", "checkpoint=CHECKPOINT", "question=1", "thought=8"], "thought=8: there are 3; expected 1 to 3"),
        (["intervene", "checkpoint=CHECKPOINT", "question=1", "kind=melt"], "kind=melt: expected one of zero, mean"),
        (["graph", "checkpoint=CHECKPOINT", "data=DATA"], "no problem has a graph"),
        (["checkpoint=CHECKPOINT", "question=1", "out=DATA"], "cannot be created"),
        (["checkpoint=CHECKPOINT", "question=1", "topk=3"], "topk=3: no group has this key; did you mean top_k"),
    ],
)
def test_impossible_requests_are_refused_with_a_reason(checkpoint, problems, line, message, capsys):
    given = [part.replace("CHECKPOINT", str(checkpoint)).replace("DATA", str(problems)) for part in line]
    assert main(given) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_study_trains_what_is_missing_and_measures(tmp_path, capsys):
    line = ["--out", str(tmp_path), "--tasks", "modular_sum", "--methods", "coconut", "--problems", "20", "--fit", "60"]
    line += ["--draws", "1", "--set", "num_epochs=1", "size.train=256", "size.valid=20", "size.test=30"]
    assert study(line) == 0
    (first,) = tmp_path.glob("runs/modular_sum/coconut/seed_0/result.json")
    written = first.stat().st_mtime_ns
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "sums of four digits modulo 10: coconut, seed 0" in tables
    assert (tmp_path / "modular_sum" / "coconut" / "seed_0" / "probes.png").is_file()
    # Other options get folders of their own.
    assert study([*line, "--draws", "2"]) == 0
    assert len(list(tmp_path.glob("modular_sum/coconut/seed_0-*/tables.md"))) == 1
    assert len(list(tmp_path.glob("tables-*/tables.md"))) == 1
    assert study(line) == 0
    assert first.stat().st_mtime_ns == written
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") == tables
