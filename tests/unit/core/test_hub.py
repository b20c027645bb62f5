"""The Hub without a network: models and datasets are found in the local cache, or refused in one line."""

import json
import shutil

import datasets
import huggingface_hub
import pytest

from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core import hub
from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.export.hub import upload
from sae_dist.llm import hub as models
from sae_dist.llm.facts import llm_facts
from sae_dist.tokens import hf
from tests.helpers.tiny_llms import save_tiny


@pytest.fixture(params=["http://127.0.0.1:9", "no proxy at all", "socks5://127.0.0.1:9"])
def no_network(request, monkeypatch, tmp_path):
    """Every request goes to a proxy that is not there, and the caches are empty."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, request.param)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")

    def anew():
        huggingface_hub.close_session()
        hub.hub_answers.cache_clear()
        models._say_once.cache_clear()

    anew()
    yield tmp_path
    anew()


def test_a_model_is_found_in_the_cache_or_refused(no_network, capsys):
    for name in ("some/model", "gpt2"):
        with pytest.raises(
            ConfigError, match=f"llm.name={name} is neither .* and {hub.UNREACHABLE}"
        ) as refusal:
            llm_facts(LlmConfig(name=name), None)
        assert "\n" not in str(refusal.value)
    snapshot = no_network / "hub" / "models--some--model" / "snapshots" / "abc"
    save_tiny("llama", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    for _ in range(2):
        assert llm_facts(LlmConfig(name="some/model"), None)[0].path == str(snapshot)
    said = [line for line in capsys.readouterr().err.splitlines() if "llm.name=" in line]
    assert said == [f"llm.name=some/model: {hub.UNREACHABLE}; using the local cache, {snapshot}"]


def test_a_dataset_is_found_in_the_cache_or_refused(no_network, capsys):
    with pytest.raises(
        ConfigError, match=f"tokens.dataset=some/texts is neither .*{hub.UNREACHABLE}"
    ) as refusal:
        hf._load(TokensConfig(kind="hf", dataset="some/texts"), "tokens.dataset=some/texts")
    assert "\n" not in str(refusal.value)
    assert datasets.config.HF_HUB_OFFLINE is False
    # As the library keeps a dataset of the Hub that it has downloaded before.
    (no_network / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    made = datasets.load_dataset("json", data_files=str(no_network / "a.jsonl"), split="train")
    kept = no_network / "datasets" / "some___texts" / "default" / "0.0.0" / "abc"
    kept.mkdir(parents=True)
    (arrow,) = made.cache_files
    shutil.copy(arrow["filename"], kept / "texts-train.arrow")
    (info,) = no_network.glob("datasets/json/*/0.0.0/*/dataset_info.json")
    content = json.loads(info.read_text()) | {"dataset_name": "texts", "config_name": "default"}
    (kept / "dataset_info.json").write_text(json.dumps(content))
    for streaming in (False, True):
        cfg = TokensConfig(kind="hf", dataset="some/texts", split="train", streaming=streaming)
        dataset, first = hf._load(cfg, "tokens.dataset=some/texts")
        assert first == {"text": "a"} and len([*dataset]) == 2
    assert f"tokens.dataset=some/texts: {hub.UNREACHABLE}; looking in the local" in capsys.readouterr().err


def test_an_upload_that_does_not_arrive(no_network, monkeypatch):
    with pytest.raises(SaeDistError, match="is ready, but the Hub rejected it .*; try again with: hf upload"):
        upload(no_network, "me/mine")


def test_errors_are_those_of_the_library_that_the_hubs_own_is_built_on():
    names = {f"{each.__module__.split('.')[0]}.{each.__name__}" for each in hub.network_errors()}
    (library,) = {name.split(".")[0] for name in names} - {"builtins", "huggingface_hub"}
    assert {f"{library}.HTTPError", "huggingface_hub.HfHubHTTPError", "builtins.OSError"} <= names
    errors = hub.network_errors()
    module = __import__(library)
    for name in ("ConnectError", "ProxyError", "ConnectTimeout", "ReadTimeout", "InvalidURL"):
        assert not hasattr(module, name) or issubclass(getattr(module, name), errors)
    assert issubclass(huggingface_hub.errors.OfflineModeIsEnabled, errors)


def test_a_hub_that_fails_inside_does_not_answer(monkeypatch):
    class Session:
        def head(self, address, timeout):
            return type("Answer", (), {"status_code": 503})

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    hub.hub_answers.cache_clear()
    assert hub.hub_answers() is False
    hub.hub_answers.cache_clear()
