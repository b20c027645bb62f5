"""Passwords and tokens: found in whatever form they are given, and nothing else taken for one."""

import re
import shlex
import time
from pathlib import Path

import pytest

from sae_dist.cli import main
from sae_dist.core.errors import ConfigError
from sae_dist.core.hidden import MASK, holds_secret, masked
from sae_dist.core.text import print_line
from sae_dist.launch.compose import compose_config

A = "Zx81kQp0Lm7Rt3Vb9Ny2Hc6Wd4Fg5Js"
HEX = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
FORMS = {
    # commands
    "curl": "pipe:curl -u me:pw1 https://example.org/{}",
    "curl, in one option": "pipe:curl -sSLu me:pw1 https://example.org/{}",
    "docker": "docker login -u me -p hunter2",
    "W&B, a command": f"wandb login {HEX}01234567",
    "redis": "redis-cli -a hunter2 get x",
    "LDAP": "ldapsearch -x -w hunter2",
    "MinIO": "mc alias set x https://h KEY hunter22",
    "OpenSSL": "openssl enc -d -pass pass:hunter2",
    "an archive": "unzip -P hunter2 a.zip",
    "a share": "smbclient //h/s -U me%hunter2",
    "a header of GitLab": "PRIVATE-TOKEN: abc",
    "a header of Azure": f"Ocp-Apim-Subscription-Key: {HEX}",
    "spaces": "password  =  hunter2",
    "W&B, local": f"local-{HEX}01234567",
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.IjZAx9LbRXHnssebfXwNL3W8TAt97ar7",
    "a bot": f"https://api.telegram.org/bot123456789:{A}abcd/x",
    "a hook": f"https://discord.com/api/webhooks/1234567890/{A}",
    "another hook": f"https://x.webhook.office.com/webhookb2/{A}",
    "xAI": f"xai-{A}{A}",
    "Fireworks": f"fw_{A[:24]}",
    "Cerebras": f"csk-{A}{A[:16]}",
    "RunPod": f"rpa_{A}abcd",
    "Kaggle": f"KGAT_{HEX}",
    "Notion": f"ntn_{A}",
    "Notion, older": f"secret_{A}{A[:12]}",
    "Figma": f"figd_{A}",
    "Atlassian": f"ATATT3{A}{A}",
    "Google, refresh": f"1//0{A}",
    "Google, storage": f"GOOG1E{A.upper()}",
    "Supabase": f"sbp_{HEX}",
    "New Relic": "NRAK-JGCBNGHQ7KYDAACWBLINJDANTQK",
    "Tailscale": f"tskey-auth-{A}",
    "Docker Hub": f"dckr_pat_{A[:27]}",
    "Mailgun": f"key-{HEX}",
    "Hugging Face, of an organisation": f"api_{A}abc",
    "curl, as one word": "pipe:curl -ume:pw1 https://example.org/{}",
    "curl, proxy": "pipe:curl -s --proxy-user me:pw1 https://example.org/{}",
    "curl, a header": f"pipe:curl -H 'Authorization: Basic {A}' https://example.org/{{}}",
    "curl, a token": f"pipe:curl -H 'Authorization: token {HEX}' https://example.org/{{}}",
    "curl, a bearer": f"pipe:curl -H 'Bearer {A}' https://example.org/{{}}",
    "curl, oauth": f"pipe:curl --oauth2-bearer {A} https://example.org/{{}}",
    "curl, a key": f"pipe:curl -H 'X-Api-Key: {A}' https://example.org/{{}}",
    "curl, a cookie": "pipe:curl -b session=abcdef https://example.org/{}",
    "a cookie": "pipe:wget --header 'Cookie: id=abcdef' https://example.org/{}",
    "wget": "pipe:wget --http-password=hunter2 -qO- https://example.org/{}",
    "wget, two words": "pipe:wget --password hunter2 -qO- https://example.org/{}",
    "httpie": "pipe:https -a me:hunter2 example.org/{}",
    "sshpass": "pipe:sshpass -p hunter2 ssh host cat {}",
    "mysql": "pipe:mysql -u me -phunter2 -e 'select 1'",
    "an option": f"pipe:get --api-key {A} {{}}",
    "an option with =": f"pipe:get --secret-access-key={A} {{}}",
    "an export": "export DB_PASSWORD=hunter2",
    "an export, quoted": 'export HF_TOKEN="abcdefgh"',
    "an assignment": "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "a connection": "host=db user=me password=hunter2",
    "a storage account": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={A}==",
    "a value of YAML": "db_password: hunter2",
    "a value of JSON": '{"token": "abcdef"}',
    "a line of netrc": "machine example.org login me password hunter2",
    # addresses
    "a password in an address": "https://me:hunter22@example.org/cache",
    "a token in an address": f"https://{HEX}@example.org/cache",
    "a clone": f"git+https://{A}@example.org/me/repo",
    "a database": "postgres://me:hunter2@db/runs",
    "a query": "https://example.org/cache?token=abc123",
    "another query": "https://example.org/cache?a=1&api_key=abc123",
    "a fragment": "https://example.org/cache#access_token=abc123",
    "signed, Amazon": "https://example.org/c?X-Amz-Credential=a&X-Amz-Signature=0123456789abcdef",
    "signed, Google": "https://example.org/c?X-Goog-Signature=0123456789abcdef",
    "signed, Azure": "https://example.org/c?sv=2020&sig=abc%2Fdef",
    # by the value alone
    "GitHub": f"ghp_{A}abcd",
    "GitHub, short": "ghp_abcdefghij0123456789",
    "GitHub, fine-grained": f"github_pat_{A[:22]}_{A}",
    "GitLab": f"glpat-{A[:20]}",
    "OpenAI": f"sk-proj-{A}",
    "OpenAI, older": f"sk-{A}{A[:16]}",
    "Anthropic": f"sk-ant-api03-{A}{A}",
    "Hugging Face": f"hf_{'aB' * 17}",
    "W&B": f"wandb_v1_{A}",
    "AWS, long-lived": "AKIAIOSFODNN7EXAMPLE",
    "AWS, of a session": "ASIAIOSFODNN7EXAMPLE",
    "Google": f"AIza{A}abc",
    "Google, OAuth": f"ya29.{A}",
    "Slack": f"xoxb-123456789012-123456789012-{A[:24]}",
    "npm": f"npm_{A}abcd",
    "PyPI": f"pypi-AgEIcHlwaS5vcmc{A}{A}",
    "SendGrid": f"SG.{A[:22]}.{A}{A[:11]}",
    "Stripe": f"sk_live_{A[:24]}",
    "DigitalOcean": f"dop_v1_{HEX}{HEX}",
    "Databricks": f"dapi{HEX}",
    "Grafana": f"glsa_{A}a_0a1b2c3d",
    "JSON Web Token": f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{A}",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
}
ORDINARY = [
    "a@b:c.txt",
    "org/model-key",
    "fw_edu_10b_tokens2024_part1",
    "xai-layer12-width16384-k64-lr0",
    "secret_sharing_of_layer_12_by_16_heads",
    "local-2024-11-30-run-12",
    "api_calls_of_2024_by_12_models_x",
    "docker run -p 8080:80 image",
    "2024-11-30 12:30:45",
    "s3://bucket/key",
    "hf://datasets/me/data@main/train.parquet",
    "ssh://host/data",
    "pipe:aws s3 cp s3://bucket/cache/{} -",
    "pipe:curl -s -L --max-time 60 https://example.org/cache/{}",
    "pipe:curl -H 'Authorization: Bearer $TOKEN' https://example.org/{}",
    "pipe:curl -u $USER:$PASSWORD https://example.org/{}",
    "pipe:wget --password $PASSWORD -qO- https://example.org/{}",
    "export HF_TOKEN=$(cat ~/.token)",
    "export WANDB_API_KEY=$WANDB_API_KEY",
    "export HF_HOME=/scratch/hf TOKENIZERS_PARALLELISM=false",
    "docker run -u 1000:1000 --rm image",
    "--container-image=/images/sae.sqsh",
    "/data/token=bert/part-0.tar"[:11],
    "https://example.org/data?version=3&part=1",
    "outputs/relu-16384-k32-0f1e2d3c",
    "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
    "monkey=banana",
    "token: the",
    "a chapter on passwords: part 1",
    "The password of the castle was forgotten",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_refused_and_not_shown(tmp_path, monkeypatch, capsys, form):
    assert len(FORMS) >= 40
    monkeypatch.chdir(tmp_path)
    value = FORMS[form].replace("'", '"')
    key = "cluster.setup" if form.startswith("an export") else "activations.path"
    word = f"{key}=[{value!r}]" if key == "cluster.setup" else f"{key}='{value}'"
    assert main(["train", "activations=cache", word]) == 2
    said = capsys.readouterr()
    assert f"{key} holds a password or token" in said.err
    assert value not in said.out + said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_no_secret_is_taken(text):
    assert not holds_secret(text)


def test_the_commands_of_docs_and_tests_hold_none():
    """Those of the pages, and every word `key=value` of the tests but of the tests of this."""
    from tests.unit.core.test_docs_commands import PAGES, ROOT, commands_of

    commands = {str(each) for page in PAGES for each in commands_of(page.read_text())}
    of_tests = {
        word
        for path in (ROOT / "tests").rglob("*.py")
        if path.name not in ("test_hidden.py", "test_security.py", "test_submit.py")
        for word in re.findall(r"""["']([a-z_]+(?:\.[a-z_0-9]+)*=[^"'{}]+)["']""", path.read_text())
    }
    assert len(commands) + len(of_tests) > 200
    found = [each for each in commands | of_tests if any(map(holds_secret, shlex.split(each, posix=True)))]
    assert found == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("HF_TOKEN", "s3-from-the-environment-0123456789", "x-s3-from-the-environment-0123456789-y"),
        ("DB_PASSWORD", "hunter2", "/data/hunter2/part.tar"),
    ],
)
def test_what_this_environment_keeps_secret(monkeypatch, name, value, text):
    assert not holds_secret(text)
    monkeypatch.setenv(name, value)
    assert holds_secret(text) and value not in masked(text)


@pytest.mark.parametrize("value", ["pw", "a-long-one-0123456789"])
def test_a_secret_that_is_taken_from_the_environment(tmp_path, monkeypatch, capsys, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_PASSWORD", value)
    for word in ("metrics.project=${oc.env:MY_PASSWORD}", "metrics.group='a-${oc.env:MY_PASSWORD,none}-b'"):
        assert main(["train", word]) == 2
        said = capsys.readouterr()
        assert "holds a password or token" in said.err and value not in said.out + said.err
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert compose_config(["output=${oc.env:SCRATCH}/runs"]).output == "/scratch/runs"
    monkeypatch.setenv("WHERE", f"https://me:{value}@example.org")
    assert main(["train", "activations=cache", "activations.path=${oc.env:WHERE}"]) == 2
    assert "activations.path holds a password or token" in capsys.readouterr().err


def test_lines_hide_them(capsys):
    line = f"Client error for url https://example.org/c?X-Amz-Signature={HEX} with ghp_{A}abcd, step 5"
    print_line(line)
    said = capsys.readouterr().err
    assert HEX not in said and A not in said and MASK in said and said.endswith(", step 5\n")
    for ordinary in ("pad token: 5, eos_token=2", "token = next(tokens)", "step 10, loss 0.5"):
        assert masked(ordinary) == ordinary


def test_the_forms_of_others_are_named_with_their_source():
    text = (Path(__file__).parents[3] / "sae_dist" / "core" / "secret_forms.json").read_text()
    assert '"source": "https://github.com/gitleaks/gitleaks' in text and '"licence": "MIT' in text


@pytest.mark.parametrize("piece", ["x-", "x-key-", "a.", "xoxb-", "a_token_", "http://a:", "curl "])
def test_a_long_text_is_searched_in_a_time_that_grows_with_its_length(piece):
    text = piece * (100_000 // len(piece))
    before = time.process_time()
    holds_secret(text), masked(text)
    assert time.process_time() - before < 1.5


def test_a_value_is_not_longer_than_a_command():
    with pytest.raises(ConfigError, match="hook has 100,000 characters; at most 65,536 are read"):
        compose_config(["hook=" + "a-" * 50_000])
