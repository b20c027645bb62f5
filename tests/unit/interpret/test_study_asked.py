"""What a study is asked for: options, doses and files of prompts, and what is refused in one line."""

import inspect
import re
import subprocess
import sys

import pytest

from sae_dist.commands import ablate, steer
from sae_dist.core.errors import ConfigError
from sae_dist.interpret.study.asked import DOSES, Arm, arm_of, doses_of
from sae_dist.interpret.study.prompts import read_prompts


def test_options_become_arms_in_their_order():
    asked = steer.asked_of(
        [
            "run",
            "--ablate",
            "9",
            "--clamp",
            "123=4x",
            "--add",
            "5=-2.5",
            "--doses",
            "-1,4,.5,4",
            "--target",
            " a",
        ]
    )
    assert asked.arms == (Arm("ablate", 9), Arm("clamp", 123, 4.0, True), Arm("add", 5, -2.5, False))
    assert asked.doses == (-1, 0.5, 4) and asked.target == " a" and asked.where == "run"
    assert asked.name == "ablate_9+clamp_123=4x+add_5=-2.5"
    assert asked.command.startswith("sae-dist steer run --ablate 9 --clamp 123=4x")


def test_what_is_not_asked_has_defaults():
    asked = steer.asked_of(["run", "--project-out", "7"])
    assert asked.doses == DOSES and asked.arms == (Arm("project-out", 7),)
    assert (asked.tokens, asked.controls, asked.positions, asked.seed) == (32, 8, "all", 0)


@pytest.mark.parametrize("text", ["1=nan", "1=inf", "1=4y", "1=", "1=x"])
def test_a_dose_is_a_finite_number(text):
    with pytest.raises(ConfigError, match="the dose must be a finite number"):
        arm_of("clamp", text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run"),
        (["run"], "nothing to do"),
        (["run", "--clamp", "a=4x"], "LATENT or LATENT=DOSE"),
        (["run", "--clamp", "-3"], "LATENT or LATENT=DOSE|expected one argument"),
        (["run", "--ablate", "3=4x"], "it has no dose"),
        (["run", "--clamp", "3", "--clamp", "3=2x"], "there twice"),
        (["run", "--clamp", "3", "--doses", "1,nan"], "finite number"),
        (["run", "--clamp", "3", "--doses", ","], "there is no dose"),
        (["run", "--clamp", "3", "--positions", "first"], "choose all, every, prompt, generated, last"),
        (["run", "--clamp", "3", "--tokens", "0"], "--tokens 0: it must be a whole number from 1"),
        (["run", "--clamp", "3", "--controls", "1"], "--controls 1"),
        (["run", "--clamp", "3", "--seed", "x"], "--seed x"),
        (["run", "--clamp", "3", "--against", "a"], "--against needs --target"),
        (["run", "--clamp", "3", "--dosis", "1"], "unrecognized arguments: --dosis 1"),
    ],
)
def test_a_wrong_option_of_steer_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        steer.run(arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run"),
        (["run", "--top", "0"], "--top 0"),
        (["run", "--candidates", "x"], "--candidates x"),
        (["run", "--against", "a"], "--against needs --target"),
        (["run", "--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_a_wrong_option_of_ablate_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        ablate.run(arguments)


@pytest.mark.parametrize("command", [steer, ablate])
def test_the_help_names_every_option(command):
    text = command.help_text()
    options = set(re.findall(r'"(--[a-z-]+)"', inspect.getsource(command)))
    assert len(options) > 8 and all(f"  {each} " in text for each in options)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", "\n \n", "is empty"),
        ("a.txt", b"\xff\xfe\x00", "not text in UTF-8"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": }\n', "line 2 is not JSON"),
        ("a.jsonl", '{"prompt": "a"}\n\n["b"]\n', 'line 3 has no text "prompt"'),
        ("a.jsonl", '{"prompt": 3}', 'line 1 has no text "prompt"'),
        ("a.jsonl", '{"prompt": "a", "taget": "b"}', "has a key 'taget'"),
        ("a.jsonl", '{"prompt": "a", "target": 3}', "target must be a text"),
        ("a.jsonl", '{"prompt": "a", "target": "b"}\n{"prompt": "c"}', "line 2 has no target"),
        ("a.jsonl", '{"prompt": "a", "against": "b"}', "against without a target"),
    ],
)
def test_a_file_that_is_not_prompts_is_refused(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=words):
        read_prompts(path, None, None)


def test_a_line_has_its_own_target_or_that_of_the_option(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '\ufeff{"prompt": "a", "target": "x", "against": "y"}\n{"prompt": "b"}\n', encoding="utf-8"
    )
    first, second = read_prompts(path, " T", None)
    assert (first.target, first.against, second.target, second.against) == ("x", "y", " T", None)
    plain = tmp_path / "a.txt"
    plain.write_text("one \n\ntwo\n")
    assert [each.text for each in read_prompts(plain, None, None)] == ["one ", "two"]


def test_doses_are_sorted_and_each_once():
    assert doses_of("4x, 1,-1,1.0") == (-1, 1, 4)


def test_options_are_read_without_torch():
    code = (
        "import sys; from sae_dist.cli import main; code = main(['steer', 'run', '--clamp', '3=nan']);"
        "main(['steer', '--help']); main(['ablate', '--help']);"
        "raise SystemExit(3 if 'torch' in sys.modules or 'numpy' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "finite number" in done.stderr
