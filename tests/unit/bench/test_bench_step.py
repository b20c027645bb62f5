"""The step benchmark around its timings: turns, memory, agreement, ratios, tables, words."""

import csv
import json
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from sae_dist.bench.command import bench
from sae_dist.bench.contestant import TrialFailed
from sae_dist.bench.environments import keep
from sae_dist.bench.peers import step_io
from sae_dist.bench.step import plain
from sae_dist.bench.step.actors import Actor, NoMemory, Stage
from sae_dist.bench.step.arguments import read_step_plan
from sae_dist.bench.step.plan import (
    CONTESTANTS,
    MODES,
    PRESETS,
    Shape,
    StepContestant,
    StepPlan,
    order,
    steps_of,
    to_drop,
)
from sae_dist.bench.step.run import AtShape, disagreement
from sae_dist.bench.step.table import StepLine, format_step_tables, write_step_tables
from sae_dist.core.errors import ConfigError
from sae_dist.kernels import reference

SHAPE = Shape(width=16, latents=64, k=4, batch=32)
ASK = {"do": "make", **vars(SHAPE), "dead_share": 0.25}
CPU = torch.device("cpu")


def test_everybody_is_first_equally_often_and_follows_others():
    names = list("abcde")
    turns = [order(names, turn) for turn in range(10)]
    assert all(sorted(turn) == names for turn in turns)
    assert sorted(turn[0] for turn in turns) == sorted(names * 2)
    assert all(one != other for one, other in zip(turns, turns[1:], strict=False))
    assert turns[1] == turns[0][::-1] and order([], 3) == []


@pytest.mark.parametrize(
    ("held", "need", "dropped"),
    [
        ({"a": 10, "b": 30, "c": 20}, 40, []),
        ({"a": 10, "b": 30, "c": 20}, 41, ["b"]),
        ({"a": 10, "b": 30, "c": 20}, 75, ["b", "c"]),
        ({"a": 10, "b": 30, "c": 20}, 500, ["b", "c", "a"]),
        ({}, 500, []),
    ],
)
def test_the_largest_give_their_memory_back_until_the_next_fits(held, need, dropped):
    assert to_drop(held, need, room=100) == dropped


def test_short_steps_are_timed_several_at_once():
    assert [steps_of(seconds) for seconds in (0.0, 0.01, 0.1, 0.2, 7.0)] == [50, 25, 2, 1, 1]


class FakeActor:
    """Takes `needs` bytes of a device of `room` bytes, whose other users it knows."""

    def __init__(self, name: str, needs: int, device: dict[str, int], room: int):
        self.contestant = SimpleNamespace(guess=lambda shape: 0, label=name)
        self.name, self.needs, self.device, self.room = name, needs, device, room
        self.shape, self.held, self.need, self.made = None, 0, {}, 0

    def make(self, shape):
        self.take(self.needs // 2)
        self.shape, self.held, self.made = shape, self.needs // 2, self.made + 1
        return {"room": self.room / 0.9}

    def ask(self, **question):
        self.take(self.needs)
        self.device[self.name] = self.held
        return {"peak": self.needs, "seconds": 1.0}

    def take(self, size):
        if sum(self.device.values()) - self.device.get(self.name, 0) + size > self.room:
            self.device.pop(self.name, None)
            self.shape, self.held = None, 0
            raise NoMemory("CUDA out of memory")
        self.device[self.name] = size

    def drop(self):
        self.device.pop(self.name, None)
        self.shape, self.held = None, 0


def stage_of(*needs: int) -> Stage:
    device: dict[str, int] = {}
    return Stage({f"n{n}": FakeActor(f"n{n}", size, device, 100) for n, size in enumerate(needs)})


def step(stage: Stage, name: str):
    return stage.step(name, SHAPE, steps=1, warm=0, dead=False)


def test_all_stay_made_where_all_fit():
    stage = stage_of(40, 40, 40)
    for _ in range(2):
        for name in stage.actors:
            step(stage, name)
    assert [actor.made for actor in stage.actors.values()] == [1, 1, 1]


def test_what_does_not_fit_beside_others_is_made_anew_and_nobody_fails():
    stage = stage_of(90, 90, 10)
    for _ in range(3):
        for name in stage.actors:
            step(stage, name)
    # What n1 needs is known once it has tried beside n0.
    assert [actor.made for actor in stage.actors.values()] == [3, 4, 1]


def test_only_a_contestant_alone_runs_out_of_memory():
    stage = stage_of(60, 101)
    step(stage, "n0")
    with pytest.raises(NoMemory):
        step(stage, "n1")
    assert stage.actors["n0"].shape is None, "it had the device to itself"
    step(stage, "n0")


def test_a_process_that_ends_or_says_nothing_is_one_line(tmp_path, monkeypatch):
    plan = StepPlan(tmp_path, (SHAPE,), 1, None)
    contestant = StepContestant("odd", "odd", None, "sae_dist.cli")
    with ExitStack() as ends:
        with pytest.raises(TrialFailed, match="job.json"):
            Actor(contestant, plan, ends).ask(do="check")
        silent = Actor(contestant, plan, ends, patience_s=0.0)
        with pytest.raises(TrialFailed, match="no answer within 0 s"):
            silent.ask(do="check")
        assert silent.process is None


class Hungry:
    """A contestant that fails as it is told."""

    settings = "none"

    def __init__(self, error: Exception):
        self.error = error

    def revive(self, dead_F):
        pass

    def run(self, steps):
        raise self.error


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (ValueError("other\nlines"), False),
    ],
)
def test_what_goes_wrong_is_an_answer_and_frees_the_memory(error, memory):
    desk = step_io.Desk(SimpleNamespace(device=CPU), lambda _: Hungry(error), step_io.Memory(CPU), {})
    assert desk.answer(ASK)["settings"] == "none"
    reply = desk.answer({"do": "step", "steps": 1, "warm": 0, "dead": True})
    assert reply["memory"] is memory and "\n" not in reply["error"] and type(error).__name__ in reply["error"]
    assert desk.made is None and desk.problem is None


def test_the_problem_is_the_same_each_time_and_its_dead_latents_do_not_fire():
    shape = {"width": 64, "latents": 4096, "k": 8, "batch": 256, "dead_share": 0.1}
    problem, again = step_io.draw(shape, CPU), step_io.draw(shape, CPU)
    assert problem.drawn == again.drawn != step_io.draw(shape | {"k": 8, "width": 65}, CPU).drawn
    assert problem.dead_F.sum() == 409
    torch.testing.assert_close(problem.W_dec_FD.norm(dim=1), torch.ones(4096))
    x_BD = problem.x_BD - problem.b_dec_D
    val, idx = reference.encode_topk(x_BD, problem.W_enc_FD(), problem.b_enc_F, 8)
    assert (val > 0).all() and problem.dead_F[idx].float().mean() < 1e-3


def test_floor_and_dense_reconstruct_as_the_reference_kernels_do():
    problem = step_io.draw(ASK, CPU)
    x_BD = problem.x_BD
    val, idx = reference.encode_topk(x_BD - problem.b_dec_D, problem.W_enc_FD(), problem.b_enc_F, SHAPE.k)
    offsets = torch.arange(0, idx.numel(), SHAPE.k)
    made = reference.decode(idx.flatten(), val.relu().flatten(), offsets, problem.W_dec_FD)
    wanted = (x_BD - made - problem.b_dec_D).double().square().sum()
    for name in ("copy", "product_float32", "dense"):
        with torch.no_grad():
            found = plain.make_plain(name)(problem).squared_error(x_BD)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def test_who_disagrees_and_why():
    reference = {"fvu": 0.5, "drawn": 100.0}
    assert disagreement({"fvu": 0.5004, "drawn": 100.00001}, reference) is None
    assert "FVU 0.501" in str(disagreement({"fvu": 0.501, "drawn": 100.0}, reference))
    assert "FVU nan" in str(disagreement({"fvu": float("nan"), "drawn": 100.0}, reference))
    assert "other random weights" in str(disagreement({"fvu": 0.5, "drawn": 100.1}, reference))


class Scripted:
    """A stage whose contestants answer from a table of FVU or errors, and take a second a step."""

    def __init__(self, fvu: dict[str, float | Exception]):
        self.fvu, self.asked = fvu, []
        self.actors = {name: SimpleNamespace(ask=partial(self.check, name), drop=str) for name in fvu}

    def ready(self, name, shape):
        return {"version": "1"}

    def check(self, name, do):
        assert do == "check"
        if isinstance(self.fvu[name], Exception):
            raise self.fvu[name]
        return {"fvu": self.fvu[name], "drawn": 1.0}

    def step(self, name, shape, *, steps, warm, dead):
        self.asked.append((name, dead))
        if name == "dense" and dead:
            raise NoMemory("no room for AuxK")
        return {"seconds": 1.0 * steps, "peak": 7, "dead": 6 if dead else 0}


def test_who_fails_is_a_line_that_says_so_and_the_others_go_on():
    fvu = {
        "product_float32": 0.5,
        "product_bfloat16": 0.9,
        "copy": 0.9,
        "ours": 0.5,
        "saelens": 0.6,
        "sparsify": NoMemory("CUDA out of memory"),
        "dense": 0.5,
    }
    plan = StepPlan(None, (SHAPE,), 3, None, only=("ours", "saelens", "sparsify", "dense"))
    stage = Scripted(fvu)
    one = AtShape(plan, stage, SHAPE, None)
    one.measure()
    said = {key: line.status for key, line in one.lines.items() if line.status}
    assert said == {
        ("saelens", "rest"): "disagrees",
        ("saelens", "aux"): "disagrees",
        ("sparsify", "rest"): "out of memory",
        ("sparsify", "aux"): "out of memory",
        ("dense", "aux"): "out of memory",
    }
    assert ("saelens", False) not in stage.asked and ("sparsify", False) not in stage.asked
    assert len(one.lines["ours", "aux"].samples) == len(one.lines["dense", "rest"].samples) == 3
    assert one.lines["ours", "aux"].dead == 6 and one.lines["ours", "rest"].dead == 0


def test_time_that_is_over_leaves_a_shape_out_or_ends_after_a_round():
    fvu = {"product_float32": 0.5, "product_bfloat16": 0.5, "copy": 0.5, "ours": 0.5}
    plan = StepPlan(None, (SHAPE,), 3, 1.0, only=("ours",))
    late = AtShape(plan, Scripted(fvu), SHAPE, until=0.0)
    late.measure()
    assert {line.status for line in late.lines.values()} == {"left out"}
    assert not late.stage.asked
    short = AtShape(plan, Scripted(fvu), SHAPE, until=None)
    for name in plan.names:
        short.make_and_check(name)
    short.rounds("rest", until=0.0)
    assert len(short.lines["ours", "rest"].samples) == 1


def made_lines() -> list[StepLine]:
    def line(name: str, samples: list[float], **more) -> StepLine:
        about = {"version": "1.2", "torch": "2.13", "threads": 2, "settings": f"{name}'s"}
        return StepLine(name, SHAPE, "rest", dict(enumerate(samples)), about=about, **more)

    return [
        line("product_float32", [1.0, 2.0, 4.0], peak=2**30),
        line("ours", [2.0, 2.0, 40.0], peak=2**29),
        line("dense", [], status="out of memory", why="CUDA out of memory. Tried to allocate 34 GiB"),
    ]


def test_ratios_are_taken_within_a_round():
    floor, ours, dense = made_lines()
    assert ours.median_s == 2.0 and floor.median_s == 2.0
    assert ours.over(floor) == 2.0, "the median of 2, 1 and 10"
    del ours.samples[0]
    assert ours.over(floor) == 5.5 and ours.over(dense) is None and dense.over(ours) is None


def test_tables_csv_and_plot(tmp_path):
    plan, lines = StepPlan(tmp_path, (SHAPE,), 3, None), made_lines()
    write_step_tables(plan, lines)
    shown = (tmp_path / "step.md").read_text()
    assert "D = 16, 64 latents, k = 4, batch 32: no latent is dead" in shown
    assert "| sae_dist | 1.2 | 2000 | 2000 - 4e+04 | 16 | 2.00 | 1.00 | 0.50 | 3 |" in shown
    assert "| dense, torch.compile | 1.2 | out of memory |" in shown
    assert "- dense, torch.compile: CUDA out of memory. Tried to allocate 34 GiB" in shown
    assert "out of memory" in format_step_tables(plan, lines)
    with open(tmp_path / "step.csv", newline="") as file:
        floor, ours, dense = csv.DictReader(file)
    assert float(ours["over_product_float32"]) == 2.0 and float(floor["over_ours"]) == 0.5
    assert float(ours["tokens_per_s"]) == 16 and float(ours["peak_bytes"]) == 2**29
    assert dense["status"].startswith("CUDA out of memory") and not dense["median_s"]
    kept = json.loads((tmp_path / "step.json").read_text())["lines"]
    assert kept[1]["samples"] == {"0": 2.0, "1": 2.0, "2": 40.0}
    assert (tmp_path / "step.png").stat().st_size > 10_000


def test_words_mean_a_preset_or_shapes_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    alone = tmp_path / "peers" / "saelens" / "bin" / "python"
    alone.parent.mkdir(parents=True)
    alone.touch()
    keep(alone.parents[1], ["sae-lens"])
    plan = read_step_plan(["--device", "cpu", "--folder", str(tmp_path)])
    assert plan.shapes == PRESETS["laptop"].shapes and plan.minutes == 5.5
    assert plan.only == ("ours", "ours_row_adam", "saelens", "dense")
    said = capsys.readouterr().err
    assert said.startswith(
        "no environments for sparsify, sparsify_adam, dictionary_learning, which are left out; "
    )
    assert "product_tf32" not in plan.names and set(plan.names) < set(CONTESTANTS)
    plan = read_step_plan("--latents 1k,2048 --k 4 --rounds 2 --only ours --device cpu".split())
    assert plan.shapes == (Shape(384, 1000, 4, 2048), Shape(384, 2048, 4, 2048))
    assert (plan.rounds, plan.minutes, plan.only) == (2, None, ("ours",))
    assert read_step_plan("--preset h200 --minutes 3 --device cpu".split()).minutes == 3
    assert len(PRESETS["full"].shapes) == 20 and set(MODES) == {"rest", "aux"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--only mine", "--only mine: the contestants are ours"),
        ("--only ours,saelens", "--only saelens: .* does not exist; make it with sae-dist bench peers"),
        ("--preset laptop --k 8", "--preset laptop has shapes of its own; leave out --k"),
        ("--latents 32 --k 30", "--k 30 is more than the 29 of --latents 32 that are alive"),
        ("--rounds 0", "--rounds=0 must be greater than 0"),
        ("--peer-python saelens=/nowhere", "does not exist"),
        ("--preset big", "invalid choice"),
    ],
)
def test_wrong_words_are_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")) as error:
        bench(["step", *words.split(), "--device", "cpu"])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
