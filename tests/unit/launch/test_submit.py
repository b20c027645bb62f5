"""A run's job: its options, its rules, and what the script does with what srun says. No Slurm needed."""

import os
import subprocess

import pytest

from sae_dist import cli
from sae_dist.config.run import parse_counts
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError
from sae_dist.launch.compose import compose_config
from sae_dist.launch.freeze import Frozen
from sae_dist.launch.settle import for_cluster
from sae_dist.launch.submit import option_lines, render, step_line, submit_command

ROLES = ["cluster=example_roles", "topology.producers=2", "topology.shard=4"]
NO_JOB = {key for key in os.environ if key.startswith("SLURM_")}


def composed(*overrides):
    return for_cluster(parse_counts(compose_config(["name=run", *overrides])))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["cluster.time=tomorrow"], "cluster.time='tomorrow' is not minutes, 12:00:00"),
        (["cluster.mem=lots"], "cluster.mem='lots' is not the memory"),
        (["cluster.partition='a b'"], "cluster.partition='a b' is not a name"),
        (["cluster.cpus_per_task=0"], "cluster.cpus_per_task=0 must be greater than 0"),
        (["cluster.nodes=3", "topology.shard=2"], "cluster.nodes=3 is more than the 2 ranks"),
        (["cluster.sbatch=[--constraint=x]"], """quote its items: cluster.sbatch='["..."]'"""),
        (['cluster.sbatch=["constraint=x"]'], "'constraint=x', which is no option"),
        (['cluster.sbatch=["--output=x"]'], "logs are written to the run folder"),
        (['cluster.sbatch=["--array=0-3"]'], "hydra/launcher=slurm"),
        (['cluster.setup=["a\nb"]'], "cluster.setup=a\\nb has the control character"),
        (['cluster.setup=["export WANDB_API_KEY=abc"]'], "cluster.setup holds a password or token"),
        (["device=cuda"], "set cluster.gpus_per_task=1"),
        (["cluster=example_roles"], "topology.producers=0; set that"),
        ([*ROLES, "cluster.producer.nodes=3"], "cluster.producer.nodes=3 is more than the 2 ranks"),
    ],
)
def test_what_slurm_would_trip_over_is_named(overrides, says):
    with pytest.raises(ConfigError) as caught:
        validate(composed(*overrides), submitted=True)
    assert says in str(caught.value)


def test_a_run_for_gpus_is_submitted_from_a_machine_without():
    cfg = composed("cluster=example_gpu")
    validate(cfg, submitted=True)
    assert (cfg.device, cfg.resume) == ("cuda", "auto") and cfg.kernels != "auto"
    assert composed().device == "cpu"


def test_options_and_step(tmp_path):
    cfg = composed("cluster=example_gpu", "topology.producers=2", "topology.shard=6", "cluster.nodes=2")
    lines = option_lines(cfg, tmp_path)
    asked = {"--account=my_account", "--time=24:00:00", "--nodes=2", "--ntasks=8", "--gpus-per-task=1"}
    assert asked | {"--requeue", "--signal=USR2@600", "--constraint=h100", "--exclusive"} <= set(lines)
    assert all(line.startswith("--") for line in lines)
    step = step_line(cfg, tmp_path)
    assert "--ntasks=8 --cpus-per-task=12 --cpu-bind=cores python -m sae_dist.cli resume" in step


def test_a_container_is_the_steps(tmp_path):
    step = step_line(composed("cluster=example_container"), tmp_path / "with space")
    assert "--container-image=/shared/sae_dist.sqsh" in step and step.endswith(f"'{tmp_path}/with space'")


def test_roles_that_ask_apart_are_one_heterogeneous_job(tmp_path):
    lines = option_lines(composed(*ROLES), tmp_path)
    middle = lines.index("hetjob")
    consumers, producers = lines[:middle], lines[middle + 1 :]
    assert {"--ntasks=4", "--cpus-per-task=12", "--constraint=h100"} <= set(consumers)
    assert {"--ntasks=2", "--cpus-per-task=8", "--constraint=a100", "--partition=gpu"} <= set(producers)
    names = {line for line in lines if line.startswith("--job-name")}
    assert len(names) == 2 and not [line for line in producers if line.startswith("--dependency")]
    assert "--het-group=0,1" in step_line(composed(*ROLES), tmp_path)


def test_without_slurm_it_is_one_line_and_nothing_is_left(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["submit", "debug=tiny"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "--dry-run" in err and list(tmp_path.iterdir()) == []
    assert cli.main(["train", "-m", "debug=tiny", "sae.k=4,8", "hydra/launcher=moon"]) == 2
    assert "options: basic, slurm" in capfd.readouterr().err
    assert cli.main(["submit", "--help"]) == 0
    assert "cluster=FILE" in capfd.readouterr().out


class Fake:
    """Slurm's commands, played by scripts: each srun in turn says `lines` and ends with its code."""

    def __init__(self, folder):
        self.folder, self.run = folder, folder / "run"
        (folder / "bin").mkdir()
        self.run.mkdir()
        self.command("squeue", "echo RUNNING")
        self.command("sinfo", "echo node1 mixed")
        self.command("scontrol", f'echo "$@" >>{folder}/scontrol')

    def command(self, name, body):
        path = self.folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def srun(self, *steps):
        cases = [f"{number}) {body} ;;" for number, body in enumerate(steps)]
        count = f"n=$(cat {self.folder}/n 2>/dev/null || echo 0); echo $((n + 1)) >{self.folder}/n"
        self.command("srun", "\n".join([count, "case $n in", *cases, "*) exit 99 ;;", "esac"]))

    def play(self, *overrides):
        script = self.folder / "submit.sbatch"
        script.write_text(render(composed(*overrides), self.run))
        environment = {key: value for key, value in os.environ.items() if key not in NO_JOB}
        environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_RESTART_COUNT": "1"}
        environment["PATH"] = f"{self.folder / 'bin'}:{environment['PATH']}"
        done = subprocess.run(
            ["bash", str(script)], env=environment, cwd=self.folder, capture_output=True, timeout=60
        )
        assert done.stderr == b"" and done.stdout == b""
        return done.returncode, (self.run / "logs" / "all.log").read_text().splitlines()

    def requeued(self):
        path = self.folder / "scontrol"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Fake(tmp_path)


ERROR = "sae-dist: error: "


def test_one_log_for_all_and_one_for_each_rank(fake):
    said = ["' 0: on a'", "'10: on b'", "' 0: hello'", f"'10: {ERROR}disk full'"]
    said += [f"' 0: {ERROR}rank 10 failed: disk full'", f"' 0: {ERROR}something else'", "'srun: words'"]
    fake.srun(f"printf '%s\\n' {' '.join(said)}; exit 2")
    code, log = fake.play()
    assert code == 2 and "start 2" in log[0]
    assert log[1:] == [
        "rank 0: hello",
        f"rank 10: on b: {ERROR}disk full",
        f"rank 0: on a: {ERROR}something else",
        "srun: words",
    ]
    logs = fake.run / "logs"
    assert (logs / "rank_10.log").read_text().splitlines() == ["on b", f"{ERROR}disk full"]
    assert len((logs / "rank_0.log").read_text().splitlines()) == 4


def test_stopped_on_request_goes_back_into_the_queue(fake):
    fake.srun("exit 75")
    code, log = fake.play()
    assert (code, fake.requeued()) == (75, ["requeue", "7"]) and "goes back into the queue" in log[-1]


def test_a_cancelled_job_and_one_that_may_not_are_left_alone(fake):
    fake.srun("exit 75", "exit 75")
    assert "sbatch" in fake.play("cluster.requeue=false")[1][-1]
    fake.command("squeue", "echo COMPLETING")
    assert "the job is COMPLETING" in fake.play()[1][-1]
    assert fake.requeued() == []


def test_a_failed_rank_is_started_again_as_long_as_there_is_progress(fake):
    latest = fake.run / "checkpoints"
    moves = [f"mkdir -p {latest}; echo step_{number} >{latest}/latest; exit 1" for number in range(3)]
    fake.srun(*moves, "exit 0")
    code, log = fake.play("cluster.restarts=1")
    assert code == 0 and [line for line in log if "(1 of 1)" in line] == log[1:]


def test_without_progress_it_fails_and_where_a_node_is_silent_it_is_put_back(fake):
    fake.srun("exit 3", "exit 3", "exit 3", "exit 3")
    code, log = fake.play("cluster.restarts=1")
    assert code == 3 and log[-1].startswith("slurm: failed with exit code 3, 2 times")
    fake.command("sinfo", "echo node1 'mixed*'")
    assert fake.play("cluster.restarts=0")[0] == 75
    assert fake.requeued() == ["requeue", "7"]


def test_ranks_that_a_failed_one_leaves_behind_are_ended(fake):
    fake.srun("echo 'srun: error: a: task 2: Killed'; exec sleep 50", "exit 0")
    code, log = fake.play()
    assert code == 0 and "failed with exit code 143; the ranks start again" in log[-1]


@pytest.mark.parametrize("key", ["name", "output", "tokens.path", "metrics.group"])
def test_a_line_break_in_a_name_is_no_line_of_the_job(key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["name=run", f"{key}='a\ntouch marker\n#'"][key == "name" :]
    assert cli.main(["submit", "--dry-run", *words]) == 2
    assert f"{key}=a\\ntouch marker\\n# has the control character" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", ["folder", "working"])
def test_a_line_break_in_a_folder_is_refused(bad, tmp_path, monkeypatch):
    place = tmp_path / "a\ntouch marker\n#"
    place.mkdir()
    monkeypatch.chdir(place if bad == "working" else tmp_path)
    with pytest.raises(ConfigError, match="has the control character"):
        render(composed(), place if bad == "folder" else tmp_path)


def test_braces_in_a_folder_are_not_filled_in(tmp_path):
    folder = tmp_path / "{{setup}} {{srun}}; touch marker"
    script = render(composed("cluster.setup=[\"echo 'a'\"]"), folder)
    assert f"run='{folder}'" in script.splitlines()
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_the_hint_can_be_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae_dist.launch.submit.prepare", lambda *_, **__: Frozen(tmp_path / "a b;c"))
    monkeypatch.setattr(
        "sae_dist.launch.submit.write_script", lambda folder, granted: folder / "submit.sbatch"
    )
    submit_command([], only_write=True)
    assert capsys.readouterr().out.endswith("sbatch 'a b;c/submit.sbatch'\n")


def test_a_job_goes_on_with_what_the_command_granted(tmp_path):
    step = step_line(composed("llm.trust_remote_code=true"), tmp_path)
    assert step.endswith(f"resume {tmp_path} llm.trust_remote_code=true")
    cfg = composed("activations=cache", "activations.path='pipe:cat {}'")
    assert step_line(cfg, tmp_path).endswith(f"resume {tmp_path} 'activations.path=pipe:cat {{}}'")
