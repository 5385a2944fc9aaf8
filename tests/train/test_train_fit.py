"""Training runs: equal to the loop written out, exact under accumulation, and bit for bit the same after any end."""

import copy
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import regard
from regard import zoo
from regard.blocks.feedforward import FeedForward
from regard.core.errors import CheckpointError, ConfigError, DataError, InputError, TrainingError
from regard.core.types import IGNORE
from regard.models.transformer import TransformerConfig
from regard.objectives.supervise import Supervise
from regard.tasks.translate import ParallelText
from regard.train.fit import Learner, Run, accumulate, fit, lean
from regard.train.optimize import Optimizer, OptimizerName
from regard.train.parallel import Parallel, Ranks
from regard.train.recipe import Recipe, load_recipe, save_recipe
from regard.train.schedule import Schedule

ALONE = Ranks(Parallel(), torch.device("cpu"))


def reversals(count, seed):
    """Digits, and the same digits from the end: a task that needs attention, learnt in seconds."""
    rng = random.Random(seed)
    rows = [" ".join(str(rng.randrange(10)) for _ in range(rng.randint(2, 6))) for _ in range(count)]
    return [f"{row}\t{row[::-1]}\n" for row in rows]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "train.tsv").write_text("".join(reversals(400, 0)))
    (folder / "valid.tsv").write_text("".join(reversals(20, 1)))
    return Recipe(
        model=TransformerConfig(
            vocab_size=0, embed_dim=16, ffn_dim=32, num_heads=2, num_encoder_layers=1, num_decoder_layers=1,
            dropout=0.1, max_seq_len=64,
        ),
        data=ParallelText(
            train=str(folder / "train.tsv"), valid=str(folder / "valid.tsv"),
            vocab_size=300, max_tokens=200, num_scored=4,
        ),
        schedule=Schedule(lr=0.01, warmup=10),
        num_steps=12,
        log_every=3,
        valid_every=4,
        average=0.9,
        precision="float32",
    )  # fmt: skip


def log_of(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "waiting")} for line in lines]


def same_run(one, two):
    for name in ("last/training.safetensors", "last/model.safetensors", "best/model.safetensors"):
        a, b = load_file(one / name), load_file(two / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert log_of(one) == log_of(two)
    states = [json.loads((run / "last/training.json").read_text()) for run in (one, two)]
    for state in states:
        del state["seconds"], state["log_bytes"]
        for clock in ("seconds", "waiting"):
            state["window"].pop(clock, None)
    assert states[0] == states[1]


def unstarted(recipe, folder):
    task = recipe.data.open()
    return Run(dataclasses.replace(recipe, model=task.configure(recipe.model)), task, folder)


def test_equals_the_loop_written_out(recipe, tmp_path):
    plain = dataclasses.replace(recipe.model, dropout=0.0)
    run = unstarted(dataclasses.replace(recipe, model=plain, average=0.0, clip_norm=0.5), tmp_path)
    # In float32 the gradient of a key's bias, which is zero, is noise that Adam turns into steps.
    model = copy.deepcopy(run.model.double())
    batches = iter(run.loader)
    for _ in range(8):
        run.step(batches)

    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9)
    losses, counts = [], []
    loader = run.task.loader(seed=0, prepare=Supervise().prepare)
    for step, batch in enumerate(islice(loader, 8), start=1):
        targets = batch.pop("targets")
        logits = model(**batch).logits.flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), label_smoothing=0.1, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        for parameter in model.parameters():
            parameter.grad *= min(1, 0.5 / norm)
        optimizer.param_groups[0]["lr"] = 0.01 * step / 10
        optimizer.step()
        counts.append(int((targets != IGNORE).sum()))
        losses.append(loss.item() * counts[-1])
    for (name, ours), theirs in zip(run.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    assert run.summary()["loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-9)


def test_micro_batches_are_one_batch(recipe):
    task = recipe.data.open()
    config = dataclasses.replace(task.configure(recipe.model), dropout=0.0)
    model = zoo.build(config, seed=0, dtype=torch.float64)
    examples = task.encode([*task.data.splits["train"]][:31])
    split = [task.batch(examples[a:b]) for a, b in ((0, 3), (3, 20), (20, 31))]

    def gradients(batches):
        model.zero_grad()
        totals = accumulate(Learner(model, recipe.objective), batches, ALONE, "float32")
        return totals, [p.grad / totals["targets"] for p in model.parameters()]

    many, one = gradients(split), gradients([task.batch(examples)])
    assert many[0] == pytest.approx(one[0], rel=1e-12)
    for a, b in zip(many[1], one[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_gradients_are_clipped(recipe, tmp_path, name):
    seen = []

    def measure(optimizer, args, kwargs):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([grad.flatten() for grad in grads]))

    for clip in ({"clip_norm": 0.0}, {"clip_norm": 0.01}, {"clip_norm": 0.0, "clip_value": 0.001}):
        run = unstarted(dataclasses.replace(recipe, optimizer=Optimizer(name), **clip), tmp_path)
        run.optimizer.register_step_pre_hook(measure)
        torch.manual_seed(0)
        run.step(iter(run.loader))
    free, short, flat = seen
    torch.testing.assert_close(short, free * (0.01 / free.norm()))
    assert torch.equal(flat, free.clamp(-0.001, 0.001))
    assert not torch.equal(flat, free)


def test_bfloat16_points_the_same_way(recipe):
    task = recipe.data.open()
    config = dataclasses.replace(task.configure(recipe.model), dropout=0.0)
    model = zoo.build(config, seed=0)
    batch = task.batch(task.encode([*task.data.splits["train"]][:50]))

    def gradient(precision):
        model.zero_grad()
        accumulate(Learner(model, recipe.objective), [batch], ALONE, precision)
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact, rounded = gradient("float32"), gradient("bfloat16")
    assert not torch.equal(exact, rounded)
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.995


def test_it_learns_twenty_pairs_by_heart(recipe, tmp_path):
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, embed_dim=32, ffn_dim=64, dropout=0.0),
        data=dataclasses.replace(recipe.data, train=recipe.data.valid, max_tokens=1500, num_scored=20),
        num_steps=300,
        valid_every=300,
    )
    fit(recipe, tmp_path / "run", quiet=True)
    assert log_of(tmp_path / "run")[-1]["exact_match"] == 1.0
    task = recipe.data.open(tmp_path / "run")
    sources, targets = zip(*task.data.splits["valid"], strict=True)
    assert list(task.predict(regard.load(tmp_path / "run"), sources)) == list(targets)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    fit(recipe, run, quiet=True)
    return run


def test_saving_in_the_background_changes_nothing(recipe, whole, tmp_path):
    fit(dataclasses.replace(recipe, background=True), tmp_path, quiet=True)
    for name in ("last/training.safetensors", "last/model.safetensors", "best/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_what_goes_wrong_in_the_background_is_told(recipe, tmp_path):
    def obstruct(step, _):
        (tmp_path / "last").rename(tmp_path / f"last-{step}")
        (tmp_path / "last").write_text("no folder")
        return False

    with pytest.raises(CheckpointError, match="last: cannot be saved"):
        fit(dataclasses.replace(recipe, background=True), tmp_path, quiet=True, report=obstruct)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="another system's permissions")
def test_a_lost_permission_leaves_the_old_checkpoint(recipe):
    run = Path(tempfile.mkdtemp())  # pytest's own folders may be entered by their owner alone
    run.chmod(0o755)
    user, kept = os.geteuid(), {}

    def lose(*_):
        kept.update({path.name: path.read_bytes() for path in (run / "last").iterdir() if path.is_file()})
        for name in ("best", "last"):
            (run / name).chmod(0o555)
        if user == 0:  # whom no permission stops
            os.seteuid(65534)
        return False

    try:
        with pytest.raises(CheckpointError, match=r"(best|last): cannot be saved .*ermission denied.* untouched"):
            fit(dataclasses.replace(recipe, average=0.0, patience=0), run, quiet=True, report=lose)
    finally:
        os.seteuid(user)
        for name in ("best", "last"):
            (run / name).chmod(0o755)
    assert kept == {path.name: path.read_bytes() for path in (run / "last").iterdir() if path.is_file()}
    fit(dataclasses.replace(recipe, average=0.0, patience=0), run, quiet=True, resume=True)
    shutil.rmtree(run)


def test_without_an_average_a_stopped_run_goes_on_bit_for_bit(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, average=0.0)
    fit(recipe, tmp_path / "whole", quiet=True)
    fit(recipe, tmp_path / "cut", quiet=True, report=lambda step, _: step == 4)
    fit(recipe, tmp_path / "cut", quiet=True, resume=True)
    first, second = (tmp_path / name / "last" / "training.safetensors" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


def test_the_folder_explains_itself(recipe, whole):
    names = {path.name for path in whole.iterdir()}
    assert {"recipe.json", "tokenizer.json", "log.jsonl", "best", "last"} <= names
    resolved = load_recipe(whole / "recipe.json")
    assert resolved.model.vocab_size == len(recipe.data.open(whole).tokenizer)
    assert [line["step"] for line in log_of(whole)] == [3, 4, 6, 8, 9, 12, 12]
    validation = next(line for line in log_of(whole) if "valid_loss" in line)
    assert {"valid_loss", "valid_nll", "bleu", "chrf", "exact_match"} <= validation.keys()


def test_two_runs_in_bfloat16_are_bit_equal(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, precision="bfloat16")
    for name in ("one", "two"):
        fit(recipe, tmp_path / name, quiet=True)
    same_run(tmp_path / "one", tmp_path / "two")


def test_two_runs_are_bit_equal(recipe, whole, tmp_path):
    fit(recipe, tmp_path / "run", quiet=True)
    same_run(whole, tmp_path / "run")


TRAIN = """
import sys, time, torch
from pathlib import Path
from regard.train import fit as module
from regard.train.recipe import load_recipe
torch.set_num_threads(int(sys.argv[4]))
step = module.Run.step
def slowly(self, batches):
    step(self, batches)
    time.sleep(0.05)
module.Run.step = slowly
module.fit(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), resume=sys.argv[3] == "resume", quiet=True)
"""


OPTIMIZERS = {
    "sgd": Optimizer("sgd", weight_decay=0.1, layer_decay=0.8),
    "sgd without momentum": Optimizer("sgd", momentum=0.0),
    "rmsprop": Optimizer("rmsprop", layer_decay=0.8),
    "adam": Optimizer("adam", layer_decay=0.8),
    "adamw": Optimizer("adamw", weight_decay=0.1, layer_decay=0.8),
    "adafactor": Optimizer("adafactor", layer_decay=0.8),
    "muon": Optimizer("muon", weight_decay=0.1, layer_decay=0.8),
}
"""Every optimiser there is, each with the state of its own."""


def test_every_optimizer_is_tried():
    assert {optimizer.name for optimizer in OPTIMIZERS.values()} == set(get_args(OptimizerName))


def interrupted(recipe, run, monkeypatch, at):
    """Train, as if the process had been killed before step ``at``, and go on from the last checkpoint."""
    step = Run.step

    def pull_the_plug(self, batches):
        if self.progress.step == at - 1:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Run, "step", pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, run, quiet=True)
    monkeypatch.setattr(Run, "step", step)
    fit(recipe, run, resume=True, quiet=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_bit_for_bit(recipe, tmp_path, name, monkeypatch):
    recipe = dataclasses.replace(
        recipe, optimizer=OPTIMIZERS[name], num_steps=6, valid_every=2, average=2, unfreeze_every=3
    )
    fit(recipe, tmp_path / "whole", quiet=True)
    interrupted(recipe, tmp_path / "run", monkeypatch, at=4)
    same_run(tmp_path / "whole", tmp_path / "run")


def test_recomputation_changes_nothing(recipe, tmp_path):
    folders = []
    for recompute in (0, 1):
        folders.append(tmp_path / str(recompute))
        fit(dataclasses.replace(recipe, recompute=recompute, num_steps=4), folders[-1], quiet=True)
    same_run(*folders)


def test_compiled_blocks_serve_batches_of_all_sizes(recipe, tmp_path, monkeypatch):
    graphs, sizes, compiled = [], set(), nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(self, batches):
        batch = next(batches)
        sizes.add((batch["tokens"].shape, batch["decoder_tokens"].shape))
        return taken(self, iter([batch]))

    taken = Run.step
    monkeypatch.setattr(Run, "step", step)
    monkeypatch.setattr("regard.core.linear.LARGE", 30_000)  # some products are large, some are not
    whole = partial(compiled, backend=backend, fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic, **_: whole(self, dynamic=dynamic))
    fit(dataclasses.replace(recipe, compile=True, accumulate=1), tmp_path / "run", quiet=True)
    assert len(sizes) > 2
    assert len(graphs) == 2, "the encoder's block and the decoder's"


def test_what_is_compiled_keeps_little_for_its_gradients():
    def kept(backend):
        torch._dynamo.reset()
        layer, sizes = torch.compile(FeedForward(16, 64, activation="gelu"), backend=backend), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            layer(torch.randn(8, 16, requires_grad=True), None).sum().backward()
        return sizes.count(8 * 64)

    assert (kept("inductor"), kept(lean)) == (2, 1), "what the activation makes is made again"


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [0, 1])
def test_a_compiled_run_is_the_same_run(recipe, tmp_path, recompute):
    plain = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.0), num_steps=6)
    compiled = dataclasses.replace(plain, compile=True, recompute=recompute)
    for name, each in (("eager", plain), ("compiled", compiled)):
        fit(each, tmp_path / name, quiet=True)
    for file in ("last/training.safetensors", "best/model.safetensors"):
        one, two = (load_file(tmp_path / name / file) for name in ("eager", "compiled"))
        assert one.keys() == two.keys()
    one, two = (log_of(tmp_path / name) for name in ("eager", "compiled"))
    for a, b in zip(one, two, strict=True):
        assert a.get("loss", a.get("valid_loss")) == pytest.approx(b.get("loss", b.get("valid_loss")), rel=1e-3)


def test_frozen_parts_stay_as_they_were(recipe, tmp_path):
    run = unstarted(dataclasses.replace(recipe, freeze=("encoder", "*.ffn")), tmp_path)
    before = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    batches = iter(run.loader)
    for _ in range(2):
        run.step(batches)
    for name, value in run.model.named_parameters():
        assert torch.equal(value, before[name]) == (name.startswith("encoder.") or ".ffn." in name), name
    with pytest.raises(ConfigError, match="nothing to train"):
        unstarted(dataclasses.replace(recipe, freeze=("*",)), tmp_path)


def test_unfreezing_goes_from_the_top_down(recipe, tmp_path):
    run = unstarted(dataclasses.replace(recipe, unfreeze_every=2), tmp_path)
    table = run.model.encoder_embed.weight
    before = table.detach().clone()
    batches = iter(run.loader)
    for step in range(1, 4):
        run.step(batches)
        assert torch.equal(table, before) == (step <= 2)


def test_a_run_that_gets_no_better_is_stopped(recipe, tmp_path):
    recipe = dataclasses.replace(
        recipe, schedule=Schedule("constant", lr=1e-30, warmup=0), valid_every=2, patience=3, num_steps=1000
    )
    assert fit(recipe, tmp_path / "run", quiet=True).step == 8
    assert fit(recipe, tmp_path / "run", resume=True, quiet=True).step == 8


def start(recipe_file, run, how):
    threads = str(torch.get_num_threads())
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(recipe_file), str(run), how, threads])


def wait_for_step(run, step, process):
    while process.poll() is None:
        log = run / "log.jsonl"
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_goes_on_bit_for_bit(recipe, whole, tmp_path, number):
    run = tmp_path / "run"
    save_recipe(recipe, tmp_path / "recipe.json")
    for how, step in (("start", 4), ("resume", 8)):
        process = start(tmp_path / "recipe.json", run, how)
        wait_for_step(run, step, process)
        if number == signal.SIGKILL:
            while step not in {json.loads(t.read_text())["step"] for t in run.glob("last/training.json")}:
                time.sleep(0.005)
        process.send_signal(number)
        assert process.wait() == (-number if number == signal.SIGKILL else 0)
    fit(load_recipe(run / "recipe.json"), run, resume=True, quiet=True)
    same_run(whole, run)


def test_not_finite_stops_with_the_step(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, schedule=Schedule("constant", lr=1e38, warmup=0), clip_norm=0.0)
    with pytest.raises(TrainingError, match=r"step [23]: the loss is"):
        fit(recipe, tmp_path / "run", quiet=True)


def test_a_run_goes_on_only_by_its_own_recipe(recipe, whole):
    with pytest.raises(ConfigError, match="it has another num_steps, seed"):
        fit(dataclasses.replace(recipe, num_steps=24, seed=3), whole, resume=True, quiet=True)
    with pytest.raises(ConfigError, match="it has another precision"):
        fit(dataclasses.replace(recipe, precision="bfloat16"), whole, resume=True, quiet=True)
    assert fit(dataclasses.replace(recipe, precision="auto"), whole, resume=True, quiet=True).step == 12


def test_a_run_stopped_before_its_first_step_goes_on(recipe, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("regard.train.fit.interruptions", stopped_at_once)
    assert fit(recipe, tmp_path / "run", quiet=True).step == 0
    monkeypatch.undo()
    fit(recipe, tmp_path / "run", resume=True, quiet=True)
    same_run(whole, tmp_path / "run")


@contextmanager
def stopped_at_once():
    event = threading.Event()
    event.set()
    yield event


@pytest.mark.parametrize(("split", "before"), [("valid", 1), ("train", 20)])
def test_a_pair_too_long_for_the_model_is_named_before_the_first_step(recipe, tmp_path, split, before):
    (tmp_path / "pairs.tsv").write_text("1 2\t2 1\n" * before + "7 " * 80 + "\t7\n" + "1 2\t2 1\n" * 20)
    data = dataclasses.replace(recipe.data, **{"valid": None, split: str(tmp_path / "pairs.tsv")})
    with pytest.raises(DataError, match=rf"pairs.tsv, pair {before + 1}, .* has \d+ tokens, more than the model's 64"):
        fit(dataclasses.replace(recipe, data=data), tmp_path / "run", quiet=True)


def test_training_leaves_out_what_the_model_has_no_positions_for(recipe, tmp_path):
    (tmp_path / "train.tsv").write_text("1 2\t2 1\n" * 40 + "7 " * 80 + "\t7\n")
    data = dataclasses.replace(recipe.data, train=str(tmp_path / "train.tsv"))
    assert fit(dataclasses.replace(recipe, data=data, num_steps=2), tmp_path / "run", quiet=True).step == 2


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_not_touched(recipe, tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match=r"not empty|no run"):
        fit(recipe, tmp_path, resume=resume, quiet=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


def test_a_finished_run_is_not_begun_again(recipe, whole):
    before = (whole / "log.jsonl").read_bytes()
    with pytest.raises(TrainingError, match="not empty; --resume goes on"):
        fit(recipe, whole, quiet=True)
    assert fit(recipe, whole, resume=True, quiet=True).step == 12
    assert (whole / "log.jsonl").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_begins_again(recipe, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "last")
    (run / "last").mkdir()
    fit(recipe, run, resume=True, quiet=True)
    same_run(whole, run)


def test_a_folder_in_use_is_not_touched(recipe, tmp_path):
    save_recipe(recipe, tmp_path / "recipe.json")
    process = start(tmp_path / "recipe.json", tmp_path / "run", "start")
    wait_for_step(tmp_path / "run", 3, process)
    try:
        with pytest.raises(TrainingError, match="another process"):
            fit(recipe, tmp_path / "run", resume=True, quiet=True)
    finally:
        process.kill()
        process.wait()


def test_a_full_disk_leaves_the_old_checkpoint(recipe, tmp_path, monkeypatch):
    run, step = tmp_path / "run", Run.step

    def pull_the_plug(self, batches):
        if self.progress.step == recipe.valid_every:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Run, "step", pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, run, quiet=True)
    monkeypatch.setattr(Run, "step", step)
    before = load_file(run / "last/training.safetensors")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match="untouched") as caught:
            fit(recipe, run, resume=True, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    after = load_file(run / "last/training.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert fit(recipe, run, resume=True, quiet=True).step == 12


def test_the_time_limit_ends_with_a_checkpoint(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, num_steps=100_000, max_minutes=0.02)
    progress = fit(recipe, tmp_path / "run", quiet=True)
    assert 0 < progress.step < 100_000
    assert json.loads((tmp_path / "run/last/training.json").read_text())["step"] == progress.step
    assert (tmp_path / "run/best/model.safetensors").exists()
    assert fit(recipe, tmp_path / "run", resume=True, quiet=True).step == progress.step


def test_a_batch_without_targets_is_an_error(recipe):
    task = recipe.data.open()
    model = zoo.build(task.configure(recipe.model), seed=0)
    batch = task.batch(task.encode([("1", "1")]))
    batch["targets"] = torch.full_like(batch["targets"], IGNORE)
    with pytest.raises(InputError, match="no target"):
        accumulate(Learner(model, Supervise()), [batch], ALONE, "float32")


def test_a_batch_with_every_target_masked_is_shown(recipe, tmp_path):
    run = unstarted(recipe, tmp_path)

    def masked(batches):
        for batch in batches:
            if run.loader.index == 3:
                batch["targets"] = torch.full_like(batch["targets"], IGNORE)
                masked.first = run.task.tokenizer.decode(batch["tokens"][0].tolist())
            yield batch

    batches = masked(run.loader)
    for _ in range(2):
        run.step(batches)
    with pytest.raises(DataError, match="step 3: every target is masked in batch 3 of epoch 0") as caught:
        run.step(batches)
    assert repr(masked.first) in str(caught.value)
    assert len(masked.first) > 3
