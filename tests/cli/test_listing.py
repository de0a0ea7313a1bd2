"""``evostep list``: every name of the tables, without torch."""

import pytest

from evostep.cli import main
from evostep.cli.listing import KINDS
from evostep.lab.arms.methods import METHODS
from evostep.lab.data.sources import SOURCES
from evostep.lab.models import MODELS
from evostep.scoring.metrics import METRICS

TABLES = {"data": SOURCES, "models": MODELS, "metrics": METRICS, "methods": METHODS}


@pytest.mark.parametrize("what", [*KINDS, None])
def test_every_name_is_listed_with_its_summary(
    what: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", *([what] if what else [])]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    listed = [line[0] for line in lines if len(line) == 2]
    for kind in [what] if what else KINDS:
        assert set(TABLES[kind]) <= set(listed)
    assert (["data:"] in lines) is (what is None)


def test_verbose_tells_sources_and_spans(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "metrics", "-v"]) == 0
    assert "span: [-1.0, 1.0]" in capsys.readouterr().out
    assert main(["list", "methods", "-v"]) == 0
    assert "source: arXiv 1703.03864" in capsys.readouterr().out


def test_another_kind_is_refused_by_its_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["list", "metrcs"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean metrics" in line
