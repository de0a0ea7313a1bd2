"""What was set: the more particular wins, then the command line; whatever has no effect is told."""

import itertools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from evostep.cli import main
from evostep.cli.options import make_options
from evostep.cli.parser import parse
from evostep.lab.arms.arm import Arm
from evostep.lab.arms.precedence import make_arms
from evostep.lab.options import Options

DEFAULT = {"sigma": 0.02, "population": 16}  # of openai-es: set to that, it counts as set
OTHER = {"sigma": 0.3, "population": 4}
LEVELS = ("arm", "method", "general")
SOURCES = list(itertools.product(LEVELS, ("line", "file")))  # the strongest first


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options_of(*arguments: str) -> Options:
    return make_options(parse(["compare", "--out=out", *arguments]).compare)


def arms_of(*arguments: str) -> list[Arm]:
    return make_arms(options_of(*arguments))


def arguments_of(given: dict[tuple[str, str], Any], name: str) -> list[str]:
    """How a setting is given: (level, place) -> value."""
    file: dict[str, Any] = {}
    line: list[str] = [] if any(level == "arm" for level, _ in given) else ["--arms=openai-es"]
    for (level, place), value in given.items():
        arms = [{"method": "openai-es", name: value}]
        if place == "file":
            forms = {"arm": {"arms": arms}, "method": {"openai_es": {name: value}}}
            file |= forms.get(level, {name: value})
        elif level == "arm":
            line.append(f"--arms={json.dumps(arms)}")
        else:
            line.append(f"--{'openai-es.' if level == 'method' else ''}{name}={value}")
    Path("c.yaml").write_text(yaml.safe_dump(file))
    return ["--config=c.yaml", *line]


@pytest.mark.parametrize("name", ["sigma", "population"])
@pytest.mark.parametrize(("strong", "weak"), list(itertools.combinations(SOURCES, 2)))
def test_of_two_settings_the_more_particular_wins_then_the_command_line(
    strong: tuple[str, str], weak: tuple[str, str], name: str
) -> None:
    for wins, loses in ((DEFAULT, OTHER), (OTHER, DEFAULT)):
        arguments = arguments_of({strong: wins[name], weak: loses[name]}, name)
        for ordered in (arguments, arguments[::-1]):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                (arm,) = arms_of(*ordered)
            assert getattr(arm.strategy, name) == wins[name]
            without = [f"--{name} has no effect: every arm sets its own {name}"]
            overridden = weak[0] == "general" != strong[0]
            assert [str(w.message) for w in caught] == (without if overridden else [])


@pytest.mark.parametrize(("name", "set_", "other"), [("epochs", 30, 9), ("lr", 0.01, 0.5)])
def test_a_plain_option_of_the_command_line_wins_over_the_file(
    name: str, set_: Any, other: Any
) -> None:
    for wins, loses in ((set_, other), (other, set_)):
        Path("c.yaml").write_text(f"evolve_from: 5\n{name}: {loses}\n")
        for config in (["--config=c.yaml"], ["--config", "c.yaml"]):
            for arguments in ([*config, f"--{name}={wins}"], [f"--{name}={wins}", *config]):
                assert getattr(options_of(*arguments), name) == wins
        assert getattr(options_of("--config=c.yaml"), name) == loses


@pytest.mark.parametrize("place", ["line", "file"])
def test_an_arms_own_training_wins_over_the_option(place: str) -> None:
    arms = [{"method": "sgd", "lr": 0.01}]  # the default
    Path("c.yaml").write_text(yaml.safe_dump({"arms": arms} if place == "file" else {"lr": 0.5}))
    own = "--lr=0.5" if place == "file" else f"--arms={json.dumps(arms)}"
    for arguments in (["--config=c.yaml", own], [own, "--config=c.yaml"]):
        with pytest.warns(UserWarning, match="^--lr has no effect: every arm sets its own lr$"):
            (arm,) = arms_of(*arguments)
        assert arm.training.lr == 0.01


def test_an_option_that_one_arm_takes_has_its_effect() -> None:
    arms = "--arms=[sgd, mutation, {method: openai-es, sigma: 0.1}]"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, mutation, es = arms_of(arms, "--sigma=0.5", "--population=6", "--lr=0.02")
    assert (mutation.strategy.sigma, es.strategy.sigma) == (0.5, 0.1)  # type: ignore[union-attr]


def test_a_later_file_wins_over_an_earlier_one() -> None:
    Path("a.yaml").write_text("epochs: 40\nlr: 0.5\nopenai-es: {sigma: 0.1, lr: 0.2}\n")
    Path("b.yaml").write_text("epochs: 50\nopenai_es: {sigma: 0.3}\n")
    options = options_of("--config=a.yaml", "--config=b.yaml")
    assert (options.epochs, options.lr) == (50, 0.5)
    assert options.strategies == {"openai-es": {"sigma": 0.3, "lr": 0.2}}


YAML = """
data: digits
seeds: 10:12
lr: 1e-3
openai-es:
  sigma: 0.3
  noise: uniform
arms:
  - sgd
  - method: mutation
    label: small
    sigma: 1e-3
  - {method: mutation, label: big, strategy: {sigma: 0.5, population: 3}, lr: 5e-2}
  - openai-es
"""


def test_yaml_with_dotted_overrides() -> None:
    Path("c.yaml").write_text(YAML)
    options = options_of("--config=c.yaml", "--openai-es.sigma=0.4", "--epochs=40")
    assert options.seed_list == [10, 11]  # not 612, as YAML 1.1 would have it
    assert (options.lr, options.epochs) == (1e-3, 40)
    sgd, small, big, es = make_arms(options)
    assert small.strategy.sigma == 1e-3  # type: ignore[union-attr]
    assert (big.strategy.sigma, big.strategy.size) == (0.5, 3)  # type: ignore[union-attr]
    assert (big.training.lr, sgd.training.lr) == (5e-2, 1e-3)
    assert (es.strategy.sigma, es.strategy.noise) == (0.4, "uniform")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "seeds"),
    [("3", [0, 1, 2]), ("0,4", [0, 4]), ("4,", [4]), ("10:12", [10, 11]), ("[0, 4]", [0, 4])],
)
def test_seeds_on_the_command_line(given: str, seeds: list[int]) -> None:
    assert options_of(f"--seeds={given}").seed_list == seeds


# Settings of wrong types: told in one line, wherever they stand

MALFORMED = [
    # what the file says, what the line must name
    (
        "arms: [{method: soup-cmaes, strategy: {population: null}}]",
        "population of arm 'soup-cmaes'",
    ),
    ("arms: [{method: soup-cmaes, strategy: {population: [4]}}]", "of arm 'soup-cmaes'"),
    ("{arms: soup-cmaes, soup_cmaes: {population: null}}", "population of arm 'soup-cmaes'"),
    ("arms: [{method: mutation, strategy: {sigma: null}}]", "sigma of arm 'mutation'"),
    ("arms: [{method: mutation, strategy: {sigma: [0.1]}}]", "sigma of arm 'mutation'"),
    ("arms: [{method: mutation, strategy: {noise: null}}]", "noise of arm 'mutation'"),
    ("arms: [{method: mutation, strategy: {noise: low-rank-0}}]", "'low-rank-0'"),
    ("arms: [{method: mutation, strategy: {scale: [1]}}]", "scale of arm 'mutation'"),
    ("arms: [{method: mutation, strategy: {3: 1}}]", "'3'"),
    ("arms: [{method: mutation, strategy: null}]", "strategy of arm 'mutation'"),
    ("arms: [{method: mutation, strategy: [1]}]", "strategy of arm 'mutation'"),
    ("arms: [{method: mutation, population: [4]}]", "arm 'mutation': --population"),
    ("arms: [{method: mutation, population: many}]", "arm 'mutation': --population"),
    ("arms: [{method: mutation, generations: null}]", "arm 'mutation': --generations"),
    ("arms: [{method: mutation, lr: null}]", "arm 'mutation': --lr"),
    ("arms: [{method: mutation, space: [head]}]", "arm 'mutation': --space"),
    ("arms: [{method: mutation, accept: {a: 1}}]", "arm 'mutation': --accept"),
    ("arms: [{method: mutation, 3: 4}]", "'3'"),
    ("arms: [{method: mutation, label: null}]", "label None"),
    ("arms: [{method: mutation, label: [a]}]", "label ['a']"),
    ("arms: [{method: null}]", "{'method': null}"),
    ("arms: [{method: [mutation]}]", "['mutation']"),
    ("arms: [null]", "null"),
    ("arms: [[sgd]]", "['sgd']"),
    ("arms: null", "--arms"),
    ("arms: {method: sgd}", "--arms"),
    ("arms: []", "--arms"),
    ("seeds: null", "--seeds"),
    ("seeds: [a]", "--seeds"),
    ("seeds: [true]", "--seeds"),
    ("seeds: {a: 1}", "--seeds"),
    ("data: null", "--data"),
    ("metric: [accuracy]", "--metric"),
    ("sigma: [0.1]", "--sigma"),
    ("population: 1e3", "--population"),
    ("accept: [improves]", "--accept"),
    ("mutation: null", "mutation"),
    ("mutation: 5", "mutation"),
    ("mutation: [sigma]", "mutation"),
    ("out: null", "--out"),
]


@pytest.mark.parametrize(("text", "named"), MALFORMED, ids=[text for text, _ in MALFORMED])
def test_a_malformed_setting_is_named_in_one_line(
    text: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.yaml").write_text(text + "\n")
    out = [] if text.startswith("out") else ["--out=out"]
    with pytest.raises(SystemExit) as caught:
        main(["compare", "--config=c.yaml", "--dry-run", *out])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evostep: error: ")
    assert named in line
    assert not Path("out").exists()


# Settings by their old names


@pytest.mark.parametrize("place", ["line", "file", "arm"])
def test_children_is_read_as_population_with_one_warning(place: str) -> None:
    given = {
        "line": ["--mutation.children=3"],
        "file": ["--config=c.yaml"],
        "arm": ["--arms=[{method: mutation, strategy: {children: 3}}]"],
    }[place]
    Path("c.yaml").write_text("mutation: {children: 3}\n")
    named = "children of arm 'mutation'" if place == "arm" else "--mutation.children"
    with pytest.warns(FutureWarning, match=f"^{named} is now called ") as caught:
        arms = arms_of(*([] if place == "arm" else ["--arms=mutation"]), *given)
    assert len(caught) == 1
    assert arms[0].strategy is not None
    assert arms[0].strategy.size == 3


def test_population_by_both_names_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", "--out=out", "--mutation.children=3", "--mutation.population=3"]
    with pytest.raises(SystemExit):
        main(given)
    told = "--mutation.population and --mutation.children, its old name, are both given"
    assert told in capsys.readouterr().err


# What is true or false, and where results go


@pytest.mark.parametrize(
    ("given", "budget", "antithetic"),
    [
        ([], True, None),
        (["--no-equal-budget", "--openai-es.no-antithetic"], False, False),
        (["--equal-budget", "--openai-es.antithetic"], True, True),
        (["--equal-budget=false", "--openai-es.antithetic", "false"], False, False),
        (["--equal-budget", "true", "--openai-es.antithetic=true"], True, True),
        (["--config=c.yaml", "--no-equal-budget"], False, None),
    ],
)
def test_a_switch_may_stand_alone_or_say_no(
    given: list[str], budget: bool, antithetic: bool | None
) -> None:
    Path("c.yaml").write_text("equal_budget: true\n")
    options = options_of(*given)
    assert options.equal_budget is budget
    assert options.strategies.get("openai-es", {}).get("antithetic") is antithetic


def test_a_direction_may_be_denied_and_is_unknown_by_default() -> None:
    found = [options_of(*given).higher_is_better for given in ([], ["--no-higher-is-better"])]
    assert found == [None, False]
    assert options_of("--higher-is-better").higher_is_better is True


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--no-pretrained=true", "says no, and 'true' besides: write --pretrained=true"),
        ("--no-epochs", "unknown option --no-epochs"),
        ("--no-openai-es.antithetic", "or --openai-es.no-antithetic"),
        ("--json=maybe", "--json"),
    ],
)
def test_other_ways_to_say_no_are_refused(
    given: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        options_of(given)
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_by_default_the_same_options_have_the_same_place() -> None:
    def place(*arguments: str) -> Path:
        parsed = parse([*arguments])
        return Path(parsed[parsed.command].out)

    Path("c.yaml").write_text("lr: 0.5\n")
    first = place("compare", "--lr=0.5")
    assert re.fullmatch(r"runs/compare-digits-[0-9a-f]{8}", first.as_posix())
    same = (
        ["--config=c.yaml"],
        ["--lr", "5e-1", "--seeds=9"],
        ["--lr=0.5", "--device=cpu", "--threads=1", "-v", "--dry-run"],
    )
    assert {place("compare", *arguments) for arguments in same} == {first}
    others = [
        *(place("compare", *more) for more in ([], ["--lr=0.4"], ["--lr=0.5", "--arms=sgd"])),
        *(place("train", *more) for more in (["--seed=1"], ["--seed=2"], ["--arm=sgd"])),
        *(place("polish", f"--scores={name}") for name in ("a.csv", "b.csv")),
    ]
    assert len({first, *others}) == len(others) + 1
    assert others[-1].name.startswith("polish-b-")
    assert place("compare", "--data=folder:/my/own pets").name.startswith("compare-own-pets-")
    assert place("compare", "--lr=0.5", "--out=here") == Path("here")


@pytest.mark.parametrize("shared", ["-v", "--quiet", "--json"])
def test_what_commands_share_may_stand_before_their_name(shared: str) -> None:
    before, behind = parse([shared, "list", "data"]), parse(["list", "data", shared])
    assert before == behind
    assert before.list.what == "data"
