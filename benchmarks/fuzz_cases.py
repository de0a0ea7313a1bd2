"""What `fuzz.py` feeds to evostep: drawn input for each of its readers, and whole command lines."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st

from evostep.cli import main
from evostep.cli.configuration import load as load_yaml
from evostep.cli.output import FAULT
from evostep.errors import InputError
from evostep.lab.arms.precedence import make_arms
from evostep.lab.checkpoints import load_checkpoint, save_checkpoint
from evostep.lab.comparison.directory import finished_runs, known_plan
from evostep.lab.data.sources.fashion_mnist import _read_idx
from evostep.lab.data.sources.pixels import decode_rgb
from evostep.lab.options import Options, option_kinds
from evostep.lab.polish.files import read_costs, read_prior
from evostep.lab.polish.scores import read_scores
from evostep.lab.report.contrasts import control_labels
from evostep.lab.report.history import read_history
from evostep.lab.report.page import render_template, report_context
from evostep.lab.report.records import read_results
from evostep.lab.report.spreadsheet import runs_csv
from evostep.lab.report.summary import summarise
from evostep.lab.weights import load_weights, save_weights
from evostep.polishing.serving import load_decision

Target = Callable[[Path, Any], object]
TARGETS: dict[str, tuple[st.SearchStrategy[Any], Target]] = {}

# What can stand anywhere in a tree: near misses of what is expected, then anything.
_NUMBERS = (0, -1, 1, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"))
_NAMES = ("", "\x00", "\x1b[31m", "\ud800", "\u202e", "é" * 300, "9" * 5000)
_NAMES += (*"0 nan sgd accuracy a:b os:system <script> 1e999 ../../x / folder:/ -1".split(),)  # noqa: SIM905
_HOLDERS = ([], {}, [[]], [None], {"": 0}, {"mean": 1}, [0, 0])
_ODD = st.sampled_from((None, True, False, *_NUMBERS, *_NAMES, *_HOLDERS))
_TREES = st.recursive(
    _ODD | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def target(name: str, strategy: st.SearchStrategy[Any]) -> Callable[[Target], Target]:
    """Return a decorator that adds a row to the table of targets."""

    def add(function: Target) -> Target:
        TARGETS[name] = strategy, function
        return function

    return add


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return every place in a tree as (container, key)."""
    found: list[tuple[Any, Any]] = []
    pairs: Any = ()
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list):
        pairs = enumerate(tree)
    for key, value in pairs:
        found += [(tree, key), *_places(value)]
    return found


@st.composite
def bent(draw: st.DrawFn, make: Callable[[], Any]) -> Any:
    """Return a valid tree with a few places replaced, taken away, doubled, or renamed."""
    tree = make()
    for _ in range(draw(st.integers(0, 4))):
        places = _places(tree)
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(("odd", "tree", "drop", "rename", "double")))
        if what == "odd":
            holder[key] = copy.deepcopy(draw(_ODD))
        elif what == "tree":
            holder[key] = copy.deepcopy(draw(_TREES))
        elif what == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(holder[key])
        elif what == "rename":
            holder[draw(st.text(max_size=6))] = holder.pop(key)
        else:
            holder[f"{key}-"] = holder[key]
    return tree


@st.composite
def flipped(draw: st.DrawFn, make: Callable[[], list[bytes]]) -> tuple[int, bytes]:
    """Return the number of a valid file, and its bytes with a few of them changed, or cut off."""
    files = make()
    number = draw(st.integers(0, len(files) - 1))
    content = bytearray(files[number])
    for _ in range(draw(st.integers(1, 6))):
        if not content:
            break
        # headers are where formats break
        end = len(content) if draw(st.booleans()) else min(len(content), 64)
        at = draw(st.integers(0, end - 1))
        what = draw(st.sampled_from(("bit", "byte", "cut", "insert", "word")))
        if what == "bit":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "byte":
            content[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del content[at:]
        elif what == "insert":
            content[at:at] = draw(st.binary(max_size=8))
        else:
            content[at : at + 4] = draw(
                st.sampled_from((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
            )
    return number, bytes(content)


# configuration


def _valid_options() -> dict[str, Any]:
    return {
        "data": "digits",
        "arms": [
            "sgd",
            {"method": "mutation", "sigma": 0.1},
            {"method": "openai-es", "label": "es", "lr": 0.1},
        ],
        "seeds": "0:3",
        "epochs": 30,
        "evolve_from": 20,
        "population": 4,
        "metric": "macro-f1",
        "space": "head,norm",
        "accept": "improves",
        "image_size": None,
        "contrast": {
            "hypothesis": "h",
            "arm": "es",
            "controls": ["sgd"],
            "metric": "macro-f1",
            "tuning_seeds": [9],
            "trials": 1,
        },
    }


@target("configuration", bent(_valid_options))
def read_configuration(_: Path, tree: Any) -> object:
    """Options from a tree, and arms from the options."""
    known = option_kinds()
    given = (
        {name: value for name, value in tree.items() if name in known}
        if isinstance(tree, dict)
        else {}
    )
    options = Options(**given, given=frozenset(given), from_file=True)
    return make_arms(options), options.seed_list


_TOKENS = ("- ", "\n", "  ", "\t", "\x00", "\ufeff", "9" * 4400, "[" * 400, "b: ", ", ", "? ", ": ")
_TOKENS += (
    *"a [ ] { } | > ' # % é \U0001f600 --- ... = 1e3 10:12 ~ .nan -.inf 0x1f 1_000".split(),  # noqa: SIM905
)
_TOKENS += (*"2001-99-99 2001-12-14t21:59:43.10-99:99".split(), '"')  # noqa: SIM905
_TAGS = "&x *x <<: !!int !!float !!timestamp !!binary !!set !!bool !!python/object/apply:os.system"
_YAML = st.lists(
    st.sampled_from((*_TOKENS, *(f"{tag} " for tag in _TAGS.split()))) | st.text(max_size=5),
    max_size=14,
).map("".join)


@target("yaml", _YAML)
def read_yaml(_: Path, text: str) -> object:
    """Text as YAML."""
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return None


# results


def _valid_results() -> dict[str, Any]:
    runs = [
        {
            "arm": arm,
            "seed": seed,
            "test": {"accuracy": 0.9 + 0.01 * seed, "loss": 0.3, "macro-f1": 0.8},
            "train": {"accuracy": 1.0, "loss": 0.0},
            "sample_forwards": 1000,
            "seconds": 3.5,
            "epochs": 4,
            "generations": 2,
            "accepted": 1,
            "failed": 0,
            "environment": {"cpu": "a", "threads": 1},
        }
        for arm in ("sgd", "es")
        for seed in (0, 1)
    ]
    arm = {"method": "sgd", "budget": 1000, "training": {}, "control": True}
    contrast = {
        "hypothesis": "h",
        "arm": "es",
        "controls": ["sgd"],
        "metric": "accuracy",
        "seeds": [0, 1],
    }
    return {
        "config": {
            "data": "digits",
            "model": "mlp",
            "metric": "accuracy",
            "seeds": [0, 1],
            "budget": 1000,
            "arms": [
                {"label": "sgd", **arm},
                {"label": "es", **arm, "method": "openai-es", "control": False},
            ],
            "contrast": contrast,
        },
        "environment": {"command": "evostep compare", "cpu": "a", "date": "2026-01-01"},
        "data": {"name": "digits", "title": "Digits", "classes": ["0", "1"]},
        "splits": {"0": {"train": {"n": 10, "sha256": "ab"}, "test": {"n": 4, "sha256": "cd"}}},
        "runs": runs,
    }


@target("results", bent(_valid_results))
def read_report(folder: Path, tree: Any) -> object:
    """``results.json``: statistics, table, page without figures, spreadsheet, summary."""
    (folder / "results.json").write_text(json.dumps(tree))
    results = read_results(folder)
    context = report_context(results) | {"figures": [], "records": [], "colours": _Colours()}
    pages = [render_template(name, context).encode() for name in ("table.md.j2", "report.html.j2")]
    pages += [runs_csv(results).encode()]
    return pages, summarise(results, context, control_labels(results))


class _Colours(dict[str, str]):
    def __missing__(self, _: str) -> str:
        return "#000000"


def _valid_history() -> dict[str, Any]:
    where = {"arm": "es", "seed": 0, "epoch": 1, "sample_forwards": 10, "seconds": 1.0}
    values = {"accuracy": 0.5, "loss": 1.0}
    return {
        "lines": [
            {**where, "kind": "epoch", "train": values, "fitness": values, "arms": ["es"]},
            {
                **where,
                "kind": "generation",
                "generation": 0,
                "scores": [0.1, None, 0.3],
                "parent": 0.2,
            }
            | {
                "candidate": 0.3,
                "accepted": True,
                "failed": 1,
                "phase": {"parent": 0.1, "accepted": True},
            },
        ]
    }


@target("history", bent(_valid_history))
def read_lines(folder: Path, tree: Any) -> object:
    """``history.jsonl``."""
    lines = tree.get("lines") if isinstance(tree, dict) else None
    content = "\n".join(map(json.dumps, lines if isinstance(lines, list) else [lines]))
    (folder / "history.jsonl").write_text(content)
    return read_history(folder / "history.jsonl")


def _valid_directory() -> dict[str, Any]:
    results = _valid_results()
    arms = {arm["label"]: arm for arm in results["config"]["arms"]}
    options = {"data": "digits", "model": "mlp", "epochs": 4}
    return {
        "plan": {"options": options, "arms": arms},
        "results": results,
        "run": results["runs"][0],
    }


@target("directory", bent(_valid_directory))
def read_directory(folder: Path, tree: Any) -> object:
    """What `evostep compare` finds in its directory: plan, results, a finished run."""
    run = folder / "runs" / "sgd-seed0" / "result.json"
    run.parent.mkdir(parents=True, exist_ok=True)
    for key, path in (
        ("plan", folder / "plan.json"),
        ("results", folder / "results.json"),
        ("run", run),
    ):
        path.unlink(missing_ok=True)
        if key in tree:
            path.write_text(json.dumps(tree[key]))
    with contextlib.suppress(InputError):
        known_plan(folder)
    return finished_runs(folder)


# checkpoints and weights


def _state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "0.weight": torch.randn(4, 8, generator=generator),
        "0.bias": torch.randn(4, generator=generator),
    }
    return {
        "model": weights,
        "counters": {"epoch": 3, "seconds": 1.5, "diverged": ""},
        "list": [1, None, True],
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    return bool(type(a) is type(b) and a == b)


@functools.cache
def _checkpoints() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pt"
        save_checkpoint(path, _state())
        return [path.read_bytes()]


@target("checkpoint", flipped(_checkpoints))
def read_checkpoint(folder: Path, case: tuple[int, bytes]) -> object:
    """A checkpoint with flipped bytes: what is read is what was saved."""
    (folder / "x.pt").write_bytes(case[1])
    state = load_checkpoint(folder / "x.pt", torch.device("cpu"))
    assert _same(_state(), state), "a checkpoint was read that is not what was saved"
    return state


def _model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    model.load_state_dict(_state()["model"])
    return model


@functools.cache
def _weights() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_weights(path, _model())
        return [path.read_bytes()]


@target("weights", flipped(_weights))
def read_weights(folder: Path, case: tuple[int, bytes]) -> object:
    """Weights with flipped bytes: what is read is what was saved."""
    (folder / "x.safetensors").write_bytes(case[1])
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    load_weights(model, folder / "x.safetensors", None)
    assert _same(_state()["model"], dict(model.state_dict())), (
        "weights were read that were not saved"
    )
    return model


@target(
    "decision",
    bent(
        lambda: {
            "format": 1,
            "kind": "classes",
            "bias": [0.0, 2.0],
            "scale": 1.0,
            "classes": ["a", "b"],
        }
    ),
)
def read_decision(folder: Path, tree: Any) -> object:
    """``decision.json``."""
    (folder / "decision.json").write_text(json.dumps(tree))
    decide = load_decision(folder / "decision.json")
    return decide(np.zeros((3, 2)))


# tables


def _valid_table() -> dict[str, Any]:
    rows = [
        [f"{(i * 7) % 5 - 2 + 0.5 * c}" for c in range(3)] + ["abc"[i % 3], "g", "1"]
        for i in range(9)
    ]
    return {"header": ["score_a", "score_b", "score_c", "label", "group", "weight"], "rows": rows}


def _write_table(path: Path, tree: Any, delimiter: str = ",") -> None:
    def line(cells: Any) -> str:
        return delimiter.join(map(str, cells)) if isinstance(cells, list) else str(cells)

    rows = tree.get("rows") if isinstance(tree, dict) else tree
    lines = [
        tree.get("header", "") if isinstance(tree, dict) else "",
        *(rows if isinstance(rows, list) else [rows]),
    ]
    path.write_bytes("\n".join(map(line, lines)).encode("utf-8", "surrogatepass"))


_COLUMNS = st.sampled_from([None, "group", "weight", "label", "nothing", "score_a"])
_TABLES = st.tuples(
    bent(_valid_table),
    st.sampled_from(",;\t"),
    st.sampled_from(("logits", "probabilities")),
    _COLUMNS,
    _COLUMNS,
)


@target("scores", _TABLES)
def read_csv(folder: Path, case: Any) -> object:
    """Scores as CSV."""
    tree, delimiter, scores_are, groups, weights = case
    _write_table(folder / "s.csv", tree, delimiter)
    return read_scores(folder / "s.csv", scores_are, groups=groups, weights=weights)


@functools.cache
def _binary_tables() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    table = _valid_table()
    columns = {name: [row[i] for row in table["rows"]] for i, name in enumerate(table["header"])}
    arrays = {
        name: np.array(values, dtype=float if name[:5] == "score" else "U5")
        for name, values in columns.items()
    }
    plain, whole, buffer = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(
        whole, scores=np.ones((4, 3)) * np.arange(4)[:, None], label=np.arange(4) % 3
    )
    parquet.write_table(pa.table({k: v.tolist() for k, v in arrays.items()}), buffer)
    return [plain.getvalue(), whole.getvalue(), buffer.getvalue()]


@target("binary-scores", flipped(_binary_tables))
def read_binary(folder: Path, case: tuple[int, bytes]) -> object:
    """Scores as npz and parquet, with flipped bytes."""
    path = folder / ("s.npz", "s.npz", "s.parquet")[case[0]]
    path.write_bytes(case[1])
    return read_scores(path, "logits")


_COSTS = st.tuples(
    bent(lambda: {"rows": [["0", "1"], ["5", "0"]]}),
    st.sampled_from(("c.csv", "c.json", "c.npy")),
    st.binary(max_size=80),
)


@target("costs", _COSTS)
def read_numbers(folder: Path, case: Any) -> object:
    """Costs and frequencies from CSV, JSON and npy."""
    tree, name, junk = case
    path = folder / name
    if name == "c.csv":
        _write_table(path, tree)
    elif name == "c.json":
        path.write_text(json.dumps(tree.get("rows") if isinstance(tree, dict) else tree))
    else:
        array = io.BytesIO()
        np.save(array, np.eye(2))
        content = bytearray(array.getvalue())
        content[len(junk) : 2 * len(junk)] = junk
        path.write_bytes(content)
    with contextlib.suppress(InputError):
        read_prior(str(path), ("a", "b"))
    return read_costs(path, ("a", "b"))


# images and arrays


@functools.cache
def _images() -> list[bytes]:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (12, 9, 3), dtype=np.uint8)
    image, found = Image.fromarray(pixels), []
    for kind, mode in (
        *(
            ("PNG", "RGB"),
            ("PNG", "P"),
            ("PNG", "RGBA"),
            ("PNG", "1"),
            ("JPEG", "RGB"),
            ("JPEG", "CMYK"),
            ("GIF", "P"),
        ),
        *(
            ("BMP", "RGB"),
            ("TIFF", "RGB"),
            ("TIFF", "CMYK"),
            ("WEBP", "RGB"),
            ("PPM", "RGB"),
            ("EPS", "RGB"),
        ),
    ):
        file = io.BytesIO()
        exif = {"exif": Image.Exif().tobytes()} if kind == "JPEG" else {}
        image.convert(mode).save(file, kind, **exif)
        found.append(file.getvalue())
    for kind in ("GIF", "PNG", "WEBP"):
        file = io.BytesIO()
        image.save(file, kind, save_all=True, append_images=[image.rotate(90), image.rotate(180)])
        found.append(file.getvalue())
    return found


@target("images", flipped(_images))
def read_image(_: Path, case: tuple[int, bytes]) -> object:
    """Images of every kind that a folder may hold."""
    return decode_rgb(io.BytesIO(case[1]), "x.png", 8)


@functools.cache
def _idx() -> list[bytes]:
    import gzip

    raw = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 3, 3)) + bytes(range(18))
    return [raw, gzip.compress(raw, mtime=0)]


@target("idx", flipped(_idx))
def read_idx(folder: Path, case: tuple[int, bytes]) -> object:
    """IDX files, gzipped or not."""
    path = folder / ("x", "x.gz")[case[0]]
    path.write_bytes(case[1])
    return _read_idx(path, 3)


# the whole command line


_WORDS = """evaluate report compare polish train sigma methods list doctor --help --version --json
--quiet --verbose --dry-run --scores=s.csv --scores-are=logits --scores-are=probabilities -- - d
--config=c.yaml --metric=macro-f1 --metric= --metric=a+b --folds=3 --budget=40 --target=label
--groups=group --weights=weight --out=out --out=/dev/null --out= --seeds=1 --arms=sgd --arms={
--lr=nan --epochs=1 --data=folder:d --image-size=8 --model=mlp --data=x:y --costs=c.json
--prior=0.5,0.5 --prior=p --space=head --skip-bad=3 --skip-bad=-1 --init-from=w.safetensors""".split()  # noqa: E501, SIM905
_WORD = st.sampled_from((*_WORDS, "--metric=a subject to b >= 1")) | st.text(max_size=8)
COMMANDS = st.one_of(
    st.tuples(st.just("words"), st.lists(_WORD, max_size=6)),
    st.tuples(st.just("config"), bent(_valid_options)),
    st.tuples(st.just("yaml"), _YAML),
    st.tuples(st.just("report"), bent(_valid_results)),
    st.tuples(st.just("evaluate"), bent(_valid_table)),
    st.tuples(st.just("plan"), bent(_valid_directory)),
)


def _arguments(kind: str, case: Any, folder: Path) -> list[str]:
    """Return a command line, and write the files that it reads."""
    if kind == "words":
        _write_table(folder / "s.csv", _valid_table())
        (folder / "c.yaml").write_text("epochs: 2\n")
        return [str(word) for word in case]
    if kind in ("config", "yaml"):
        text = case.encode("utf-8", "surrogatepass") if kind == "yaml" else _as_yaml(case)
        (folder / "c.yaml").write_bytes(text)
        return ["compare", "--config=c.yaml", "--dry-run", "--out=no", "--threads=1"]
    if kind == "report":
        (folder / "d").mkdir(exist_ok=True)
        (folder / "d" / "results.json").write_text(json.dumps(case))
        return ["report", "d"]
    if kind == "plan":
        read = functools.partial(read_directory, folder / "d")
        (folder / "d").mkdir(exist_ok=True)
        with contextlib.suppress(Exception):
            read(case)
        return [
            "compare",
            "--data=digits",
            "--model=mlp",
            "--epochs=4",
            "--evolve-from=2",
            "--arms=sgd",
            "--dry-run",
            "--out=d",
        ]
    _write_table(folder / "s.csv", case)
    return ["evaluate", "--scores=s.csv", "--scores-are=logits"]


def _as_yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def run_command(folder: Path, case: tuple[str, Any]) -> object:
    """Run a whole command in a folder of its own: 0, 1 or 2, and no traceback."""
    with tempfile.TemporaryDirectory(dir=folder) as place, contextlib.chdir(place):
        arguments = _arguments(*case, Path(place))
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                code: Any = main(arguments)
            except SystemExit as end:
                code = end.code
    told = err.getvalue()
    assert code in (0, 1, 2), f"exit code {code!r} of {arguments}"
    assert "Traceback" not in told, told[-600:]
    assert FAULT not in told, told[-600:]
    for sign in "\x1b\x00\x9b":
        assert sign not in out.getvalue() + told, f"{sign!r} is printed: {arguments}"
    if code == 2:
        errors = [line for line in told.splitlines() if line.startswith("evostep: error: ")]
        assert len(errors) == 1, told[-600:]
    return code
