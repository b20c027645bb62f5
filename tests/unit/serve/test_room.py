"""Sentences and steering: what the pages show is what the library finds, one wish at a time."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import sae_dist as sd
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.core.errors import ConfigError
from sae_dist.serve.room import Room
from tests.helpers.served import OWN, atlas_run, client

TEXT = "def test_it(self): return <b>1</b>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return atlas_run(tmp_path_factory.mktemp("a") / "run")


@pytest.fixture(scope="module")
def room(run):
    room = Room(str(run))
    yield room
    room.close()


@pytest.fixture(scope="module")
def user(run, room):
    with client(Atlas.open(run), room) as user:
        yield user


def test_a_sentence(user, run, room):
    assert not room.loaded
    d = sd.load(run)
    found = d.explain(sd.model(d), TEXT, top=24)
    latent = found.latents_seen["latent"][0]
    page = user.post("/sentence", data={"text": TEXT, "latent": str(latent)}, headers=OWN).text
    listed = [
        int(each) for each in re.findall(r'<th scope="row"><a class="latent" href="latent/(\d+)"', page)
    ]
    assert listed == found.latents_seen["latent"][:24]
    assert "&lt;" in page and "<b>1" not in page
    special = found.tokens_seen["special"]
    rows = zip(*(found.pairs[key] for key in ("position", "latent", "code")), strict=True)
    codes = {position: code for position, n, code in rows if n == latent and not special[position]}
    own = page[page.index(f"Latent {latent}<") :].split("</p>")[0]
    shades = [int(re.match(r"k(\d+)", each)[1]) for each in re.findall(r'span class="([^"]*)"', own)]
    for position, shade in enumerate(shades):
        assert abs(shade - 10 * codes.get(position, 0.0) / max(codes.values())) <= 1.001
    assert room.loaded


def test_steering(user, run):
    sent = {"text": "def test", "latent": "3", "how": "clamp", "dose": "400", "tokens": "8"}
    page = user.post("/steer", data=sent, headers=OWN).text
    d = sd.load(run)
    lm = sd.model(d)
    texts = []
    for change in ({}, {3: sd.clamp(400.0)}):
        with d.steer(lm, change):
            ids = lm.generate(
                **lm.batch(["def test"]), max_new_tokens=8, do_sample=False, pad_token_id=lm.pad_id
            )
        texts.append(lm.tokenizer.decode(ids[0, -8:].tolist()))
    shown = re.findall(r'<p class="text" dir="auto">(.*?)</p>', page, flags=re.S)
    assert [each.strip() for each in shown] == [each.strip() for each in texts] and texts[0] != texts[1]
    assert "usual norm" in page and "the model may leave what it was trained on" in page
    nothing = user.post("/steer", data=sent | {"how": "ablate", "latent": "63"}, headers=OWN).text
    assert "The model writes the same text." in nothing or "0 %" not in nothing


def test_a_text_that_is_too_long_for_the_model(user):
    answer = user.post("/sentence", data={"text": "1 " * 1000}, headers=OWN)
    assert answer.status_code == 422 and "give at most 512 here" in answer.text


def test_one_wish_at_a_time(user, room):
    """The second is told so at once, and the page is served meanwhile."""
    begun, end = threading.Event(), threading.Event()
    real = room._loaded
    room._loaded = lambda: (begun.set(), end.wait(30), real())[2]
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(user.post, "/sentence", data={"text": TEXT}, headers=OWN)
            assert begun.wait(30)
            assert user.get("/latent/3").status_code == 200
            busy = user.post("/steer", data={"text": "x", "latent": "1", "dose": "1"}, headers=OWN)
            assert busy.status_code == 503 and "at work on another text" in busy.text
            end.set()
            assert first.result(60).status_code == 200
    finally:
        end.set()
        room._loaded = real
    assert user.post("/sentence", data={"text": TEXT}, headers=OWN).status_code == 200


def test_a_model_that_fails_closes_nothing(user, room, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("in the model's own code")

    monkeypatch.setattr("sae_dist.interpret.dictionary.Dictionary.explain", broken)
    answer = user.post("/sentence", data={"text": TEXT}, headers=OWN)
    assert answer.status_code == 422 and "the model failed: ZeroDivisionError" in answer.text
    monkeypatch.undo()
    assert user.post("/sentence", data={"text": TEXT}, headers=OWN).status_code == 200


def test_a_run_without_an_export_says_why(tmp_path, run):
    room = Room(str(tmp_path))
    page = client(Atlas.open(run), room).post("/sentence", data={"text": "x"}, headers=OWN)
    assert page.status_code == 422 and str(tmp_path) in page.text
    assert room.closed and str(tmp_path) in client(Atlas.open(run), room).get("/latent/3").text
    room.close()


def test_a_closed_room(run):
    room = Room(str(run), closed="no")
    with pytest.raises(ConfigError, match="no"):
        import asyncio

        asyncio.run(room.work(lambda bench: None))
