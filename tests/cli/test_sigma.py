"""``evostep sigma``: what `suggest_sigma` says of a trained network."""

import math
from pathlib import Path

import pytest
import torch

from evostep import Only
from evostep.cli import main
from evostep.cli.parser import parse
from evostep.cli.sigma import suggest
from evostep.lab.data.images import load_data
from evostep.lab.data.parts import cut
from evostep.lab.data.splits import splits_of
from evostep.lab.models import build_model
from evostep.lab.options import Options
from evostep.lab.weights import save_weights
from evostep.suggest import suggest_sigma

CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path, digits_read_once: None) -> Path:
    torch.manual_seed(0)
    model = build_model("mlp", channels=1, classes=10, image_size=8, seed=3)
    save_weights(tmp_path / "w.safetensors", model)
    return tmp_path / "w.safetensors"


def test_it_says_what_the_function_says(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["sigma", "--model=mlp", f"--init-from={weights}", "--share=0.1", "--draws=2"]
    given += ["--space=head", "--scale=absolute", "--noise=uniform", "--seed=5", "--part=test"]
    found = suggest(parse([*given, "--split-seed=4"]).sigma)
    model = build_model("mlp", channels=1, classes=10, image_size=8, seed=3)
    data = load_data("digits")
    parts = cut(data, splits_of(Options(), data, 4), CPU)
    expected = suggest_sigma(
        model.eval(),
        parts.test.batches(parts.data),
        share=0.1,
        draws=2,
        space=Only("head"),
        scale="absolute",
        noise="uniform",
        seed=5,
    )
    assert found == expected
    assert not math.isnan(found.sigma)
    assert main(given) == 0
    assert "10% change at sigma = " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "of which network? Give --model and --init-from"),
        (["--model=mlp"], "mlp without weights was never trained: give --init-from"),
        (["--model=m.onnx"], "the weights of m.onnx cannot be moved"),
        (["--space=span"], "mixes checkpoints of a run"),
        (["--share=1.5"], "share must lie between 0 and 1, got 1.5"),
        (["--draws=0"], "draws must be at least 1, got 0"),
        (["--space=hed"], "'hed'"),
        (["--noise=pink"], "--noise 'pink': expected normal or uniform"),
        (["--part=train"], "--part 'train': expected test or accept or fitness or all"),
        (["--seed=-1"], "--seed must be at least 0"),
    ],
)
def test_bad_input_is_one_line(
    given: list[str], told: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = any("model" in one for one in given) or not given
    with pytest.raises(SystemExit, match="2"):
        main(["sigma", *([] if own else ["--model=mlp", f"--init-from={weights}"]), *given])
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
