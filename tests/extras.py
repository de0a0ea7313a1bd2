"""Install the wheel for real, without extras and with each alone, and use it for what that is for.

One environment is made with torch and the wheel; of it each extra has a copy (files are linked, not
copied), into which pip installs the extra. A check then imports evostep and does a small thing that
the extra is for. Needs the network, or pip's mirrors, and about 10 GB; environments are deleted.

    python tests/extras.py --work /tmp/extras --json extras.json
    python tests/extras.py --work /tmp/extras --base /tmp/base cma peft
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BARE = "none"

# What every check of a framework begins with.
TINY = """
import torch
from torch.nn import functional as F
import evostep
from evostep.integrations import evolve
torch.manual_seed(0)
x = torch.randn(60, 4)
y = (x[:, 0] > 0).long()
batches = [(x, y)]
net = torch.nn.Linear(4, 2)
strategy = evostep.OpenAIES(sigma=0.1, lr=0.1, population=8)
before = net.weight.detach().clone()
def moved():
    assert not torch.equal(net.weight, before), "evolution moved nothing"
"""
BERT = """
import tempfile
from transformers import BertConfig, BertForSequenceClassification
layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
sizes = {"vocab_size": 10, "hidden_size": 16, "max_position_embeddings": 8}
bert = BertForSequenceClassification(BertConfig(num_labels=2, **layers, **sizes))
ids = torch.randint(10, (24, 8))
rows = [{"input_ids": i, "labels": i[0] % 2} for i in ids]
whole = [{"input_ids": ids, "labels": ids[:, 0] % 2}]
"""
TRACKED = """
optimizer = evostep.Evolved(torch.optim.SGD(net.parameters(), lr=0.1), strategy, model=net)
tracker.begin(optimizer)
evolve(optimizer, evostep.Fitness(net, batches, "neg-loss"), 2, trackers=[tracker], step=1)
tracker.close()
moved()
"""
# ONNX files are Protocol Buffers; this writes a linear layer on 64 pixels, ten classes, as one.
ONNX = """
import struct
from pathlib import Path
from evostep.cli import main

def number(n):
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + number(n // 128)

def field(tag, value):
    if isinstance(value, int):
        return number(tag * 8) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(tag * 8 + 2) + number(len(value)) + value

def info(name, *sizes):
    dims = b"".join(field(1, field(2 if isinstance(s, str) else 1, s)) for s in sizes)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

def node(kind, inputs, output):
    return b"".join(field(1, i) for i in inputs) + field(2, output) + field(4, kind)

weights = struct.pack("640f", *((i * 7919 % 101 - 50) / 100 for i in range(640)))
tensor = field(1, 64) + field(1, 10) + field(2, 1) + field(8, "w") + field(9, weights)
graph = field(1, node("Flatten", ["x"], "flat")) + field(1, node("MatMul", ["flat", "w"], "y"))
graph += field(2, "g") + field(5, tensor) + field(11, info("x", "n", 1, 8, 8))
graph += field(12, info("y", "n", 10))
Path("m.onnx").write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))
assert main("evaluate --model=m.onnx --data=digits --part=all".split()) == 0
"""
# extra -> what it is for, done where nothing else is
CHECKS: dict[str, str] = {
    BARE: """
import time, torch
began = time.process_time()
from evostep import *
import evostep
beyond = time.process_time() - began
model = torch.nn.Linear(3, 2)
batches = [(torch.randn(20, 3), torch.arange(20) % 2)]
optimizer = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), OpenAIES(0.1), model=model)
optimizer.evolve(Fitness(model, batches, "neg-loss"), generations=2)
try:
    import numpy
except ImportError:
    pass
else:
    raise SystemExit("it is not empty")
assert beyond < 1, f"import evostep takes {beyond:.2f} s beyond torch"
""",
    "metrics": """
import torch, torchmetrics
from evostep import *
model = torch.nn.Linear(3, 2)
metric = torchmetrics.F1Score("multiclass", num_classes=2)
assert 0 <= Fitness(model, [(torch.randn(20, 3), torch.arange(20) % 2)], metric)() <= 1
""",
    "cma": """
import torch
from evostep import *
Evolution({"w": torch.ones(2)}, CMAES(0.1)).evolve(lambda: 0.0)
""",
    "lab": """
from pathlib import Path
from evostep.cli import main
rows = [f"{-1 if i % 5 else 2},{i % 3},{'ab'[i % 2]}" for i in range(60)]
Path("s.csv").write_text("score_a,score_b,label\\n" + "\\n".join(rows))
assert main("polish --scores=s.csv --scores-are=logits --budget=1000 --out=o".split()) == 0
assert main("compare --dry-run --epochs=1 --evolve-from=0 --model=mlp".split()) == 0
""",
    "onnx": ONNX,
    "black-box": """
from evostep.cli import main
from evostep.lab.data.images import load_data
from evostep.lab.models import build_model
data = load_data("text-lines:0")
reader = build_model("text-reader", channels=3, classes=0, image_size=80, seed=0).eval()
texts = reader(data.normalise(data.inputs[:4]))
assert len(texts) == 4
""",
    "accelerate": TINY
    + """
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
model, optimizer = accelerator.prepare(
    net, evostep.Evolved(torch.optim.SGD(net.parameters(), lr=0.1), strategy, model=net)
)
accelerator.backward(F.cross_entropy(model(x), y))
optimizer.step()
before = net.weight.detach().clone()
optimizer.zero_grad()
evolve(optimizer, evostep.Fitness(accelerator.unwrap_model(model), batches, "neg-loss"), 2)
moved()
""",
    "lightning": TINY
    + """
from lightning import LightningModule, Trainer
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset
from evostep.integrations.lightning import Evolve
class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net
    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return evostep.Evolved(torch.optim.SGD(self.parameters(), lr=0.1), strategy, model=self)
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
callback = Evolve(lambda module: evostep.Fitness(module.net, batches, "neg-loss"), 2)
trainer = Trainer(
    max_epochs=1, accelerator="cpu", callbacks=[callback], enable_checkpointing=False, **quiet
)
trainer.fit(Module(), DataLoader(TensorDataset(x, y), 20))
assert len(trainer.optimizers[0].history) == 2
""",
    "peft": TINY
    + BERT
    + """
from peft import LoraConfig, PeftModel, get_peft_model
model = get_peft_model(bert, LoraConfig(r=2, target_modules=["query", "value"]))
own = [p for p in model.parameters() if p.requires_grad]
optimizer = evostep.Evolved(torch.optim.SGD(own, lr=0.1), strategy, model=model)
kept = [p.detach().clone() for p in own]
optimizer.evolve(evostep.Fitness(model, whole, "neg-loss"), 2)
assert any(not torch.equal(p, k) for p, k in zip(own, kept))
model.save_pretrained(folder := tempfile.mkdtemp())
""",
    "skorch": TINY
    + """
from skorch import NeuralNetClassifier
from evostep.integrations.skorch import Evolve, evolved
fitted = NeuralNetClassifier(
    lambda: net, criterion=torch.nn.CrossEntropyLoss, optimizer=evolved(torch.optim.SGD, strategy),
    max_epochs=1, verbose=0,
    callbacks=[Evolve(lambda module: evostep.Fitness(module, batches, "neg-loss"), 2)],
).fit(x.numpy(), y.numpy())
assert len(fitted.optimizer_.history) == 2
""",
    "tensorboard": TINY
    + """
from pathlib import Path
from evostep.integrations import TensorBoard
tracker = TensorBoard("events")
"""
    + TRACKED
    + 'assert any(Path("events").iterdir())\n',
    "ray": """
import ray
from evostep.lab.comparison.executors import EXECUTORS, Execution
assert ray.__version__
EXECUTORS["ray"].check(Execution("ray", jobs=1))
""",
    "wandb": TINY
    + """
import os
from pathlib import Path
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
import wandb
from evostep.integrations import WandB
run = wandb.init(project="evostep", dir=".")
tracker = WandB(run)
"""
    + TRACKED
    + 'run.finish()\nassert any(Path("wandb").rglob("*.wandb"))\n',
    "timm": TINY
    + """
import timm
from timm.optim import create_optimizer_v2
small = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1}
net = timm.create_model("vit_tiny_patch16_224", num_heads=2, num_classes=2, **small)
before = net.head.weight.detach().clone()
base = create_optimizer_v2(net, opt="adamw", lr=0.003)
optimizer = evostep.Evolved(base, strategy, space=evostep.Only("head"), model=net)
images = [(torch.randn(20, 1, 8, 8), torch.arange(20) % 2)]
optimizer.evolve(evostep.Fitness(net, images, "neg-loss"), 2)
assert not torch.equal(net.head.weight, before)
""",
    "transformers": TINY
    + BERT
    + """
from transformers import Trainer, TrainingArguments
from evostep.integrations.transformers import Evolve, evolve_optimizer
arguments = TrainingArguments(
    tempfile.mkdtemp(), num_train_epochs=1, report_to=[], disable_tqdm=True, use_cpu=True
)
trainer = Trainer(bert, arguments, train_dataset=rows)
evolve_optimizer(trainer, strategy)
trainer.add_callback(Evolve(lambda model: evostep.Fitness(model, whole, "neg-loss"), 2))
trainer.train()
assert len(trainer.optimizer.optimizer.history) == 2
""",
    "integrations": """
import evostep.integrations.lightning, evostep.integrations.skorch
import evostep.integrations.transformers
import accelerate, peft, tensorboard, timm, wandb
""",
    "dev": """
import editables, expecttest, hatchling, hypothesis, pre_commit, pytest, xdist
import subprocess, sys
for tool in ("ruff", "mypy"):
    subprocess.run([sys.executable, "-m", tool, "--version"], check=True)
""",
    "docs": """
import latex2mathml, material, mkdocstrings_handlers.python
import subprocess, sys
subprocess.run([sys.executable, "-m", "mkdocs", "--version"], check=True)
""",
}


def call(*words: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without what this environment sets for Python."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, check=False, cwd=cwd, env=clean
    )


def must(*words: Any, cwd: Path | None = None) -> None:
    """Run a command that has to succeed."""
    done = call(*words, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{done.stderr[-2000:]}")


def build(folder: Path) -> Path:
    """Build a source distribution, and the wheel from what it holds; return the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    hatch = [sys.executable, "-m", "hatchling", "build", "-d", folder]
    must(*hatch, "-t", "sdist", cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(source, folder, filter="data")
    must(*hatch, "-t", "wheel", cwd=folder / source.name.removesuffix(".tar.gz"))
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_of(base: Path, folder: Path) -> Path:
    """Link an environment's files into a new one."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, symlinks=True, copy_function=os.link)
    for name in ("pyvenv.cfg",):  # written to, or told apart, by its own content
        text = (base / name).read_text()
        (folder / name).unlink()
        (folder / name).write_text(text.replace(str(base), str(folder)))
    return folder


def own_bytes(folder: Path) -> int:
    """Return the size of files that are linked from nowhere else, but for what Python caches."""
    files = [path for path in folder.rglob("*") if not path.is_symlink() and path.suffix != ".pyc"]
    stats = [path.lstat() for path in files]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def check(environment: Path, extra: str, wheel: Path, work: Path) -> dict[str, Any]:
    """Install an extra with pip and use it; return seconds, size and what went wrong."""
    python, what = environment / "bin" / "python", f"[{extra}]" if extra != BARE else ""
    began = time.monotonic()
    # what is linked is deleted and written anew by pip, never changed in place
    options = ["-q", "--no-compile", "-c", ROOT / "constraints.txt"]
    install = [python, "-m", "pip", "install", *options]
    call(*install, "--force-reinstall", "--no-deps", wheel)  # there may be an older one
    done = call(*install, f"{wheel}{what}")
    installed = time.monotonic() - began
    found: dict[str, Any] = {"seconds": round(installed, 1), "mb": own_bytes(environment) // 10**6}
    if done.returncode:
        return {**found, "error": f"pip: {done.stderr.strip().splitlines()[-1]}"}
    place = work / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    began = time.monotonic()
    doctor = (
        "\nfrom evostep.cli import main\nmain(['doctor'])\n"  # leaves with 1 if it finds a fault
    )
    for words in (["-c", CHECKS[extra] + doctor], ["-m", "pip", "check"]):
        done = call(python, "-W", "ignore", *words, cwd=place)
        if done.returncode:
            told = (done.stderr or done.stdout).strip().splitlines()[-1]
            return {**found, "error": f"{words[0]}: {told}"}
    return {**found, "check": round(time.monotonic() - began, 1), "error": None}


def main() -> None:
    """Check those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for environments")
    parser.add_argument("--json", type=Path, help="file for what was found")
    parser.add_argument("--base", type=Path, help="environment of an earlier call, which stays")
    parser.add_argument("names", nargs="*", help="extras; all where none is named")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    unknown = set(args.names) - CHECKS.keys()
    if unknown:
        raise SystemExit(f"unknown extra {min(unknown)}: choose from {', '.join(CHECKS)}")
    wheel, found = build(work / "dist"), {}
    base = args.base.resolve() if args.base else work / "base"
    if not base.exists():
        must(sys.executable, "-m", "venv", base)
    names = list(dict.fromkeys([*([] if args.base else [BARE]), *(args.names or CHECKS)]))
    for extra in names:
        environment = base if extra == BARE else copy_of(base, work / extra)
        found[extra] = check(environment, extra, wheel, work)
        print(f"{extra}: {found[extra]}", flush=True)
        if environment != base:
            shutil.rmtree(environment)
    if not args.base:
        shutil.rmtree(base)
    about = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
    if args.json is not None:
        args.json.write_text(json.dumps({**about, "extras": found}, indent=1) + "\n")
    print("| extra | pip, s | size, MB | check, s | |\n|:--|--:|--:|--:|:--|")
    for extra, one in found.items():
        told = [one["seconds"], one["mb"], one.get("check", "-"), one["error"] or "works"]
        print(f"| {extra} | {' | '.join(map(str, told))} |")
    if failed := [extra for extra, one in found.items() if one["error"]]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
