"""The examples for clusters: scripts that a shell reads, YAML, and commands that can be given."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from evostep.cli.parser import parse

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def containers(value: Any) -> list[dict[str, Any]]:
    """Every container of a manifest, wherever it stands."""
    if isinstance(value, list):
        return [one for item in value for one in containers(item)]
    if not isinstance(value, dict):
        return []
    found = list(value.get("containers", ()))
    return found + [one for item in value.values() for one in containers(item)]


def commands(path: Path) -> list[list[str]]:
    """The commands of a file that run evostep, by their words."""
    text = path.read_text()
    if path.suffix == ".sh":
        lines = text.replace("\\\n", " ").splitlines()
        found = [shlex.split(line) for line in lines if re.match(r"\s*(srun|evostep)\b", line)]
    else:
        documents = list(yaml.safe_load_all(text))
        found = [c["command"] + c["args"] for c in containers(documents) if "command" in c]
        found += [
            shlex.split(d["spec"]["entrypoint"]) for d in documents if "entrypoint" in d["spec"]
        ]
    return [words for words in found if "evostep" in words]


def test_there_is_one_of_each() -> None:
    assert [path.name for path in SCRIPTS] == ["slurm-ray.sh", "slurm.sh"]
    assert [path.name for path in MANIFESTS] == ["kubernetes-ray.yaml", "kubernetes.yaml"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_reads_the_script(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_its_command_can_be_given(path: Path) -> None:
    (words,) = commands(path)
    if "torchrun" in words:
        launch = words[words.index("torchrun") + 1 :]
        launch = [re.sub(r"\$\w+$", "2", word) for word in launch]
        read = get_args_parser().parse_args(launch)
        assert (read.rdzv_backend, read.module, read.training_script) == ("c10d", True, "evostep")
        assert read.rdzv_endpoint
        assert read.rdzv_id
        given = read.training_script_args
    else:
        given = words[words.index("evostep") + 1 :]
    parsed = parse(given)
    own = parsed[parsed.command]
    assert own.out
    assert parsed.command == ("train" if "torchrun" in words else "compare")
    if parsed.command == "compare":
        assert own.executor == "ray"
        assert own.address


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_pod_sees_the_shared_volume(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        assert document.keys() >= {"apiVersion", "kind", "metadata", "spec"}
        for container in containers(document):
            assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
