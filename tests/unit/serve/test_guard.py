"""The wall around the server: names, the word that opens it, origins, and headers."""

import secrets

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sae_dist.serve.guard import HEADERS, Door, Guard, is_local

HOME = "http://127.0.0.1:8000"


async def app(scope, receive, send):
    await PlainTextResponse("inside")(scope, receive, send)


def browser(door, base=HOME):
    return TestClient(Guard(app, door), base_url=base, follow_redirects=False)


LOCAL = Door.at("127.0.0.1", 8000)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "localhost.:80", "[::1]:8000", "127.9.9.9"]
)
def test_its_own_names_are_known(host):
    assert browser(LOCAL).get("/", headers={"Host": host}).text == "inside"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "10.0.0.5",
        "[::2]",
        "127.0.0.1@evil.example",
    ]
    + ["localhost/evil", "a b", "0x7f.1", ""],
)
def test_another_name_is_refused(host):
    """It may be an attacker's, that was made to lead here."""
    answer = browser(LOCAL).get("/", headers={"Host": host})
    assert answer.status_code == 421 and "inside" not in answer.text


def test_beyond_this_machine_addresses_are_known_and_foreign_names_are_not():
    door = Door.at("0.0.0.0", 8000)
    assert door.token and not door.local
    assert door.knows("10.0.0.5:8000") and door.knows("localhost:7") and not door.knows("evil.example")
    assert Door.at("myhost.example", 1).knows("MyHost.example:1")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.1.1.1", False)],
)
def test_what_is_local(host, local):
    assert is_local(host) is local
    assert (Door.at(host, 1).token is None) is local
    assert Door.at(host, 1, with_token=True).token is not None


@pytest.fixture
def door():
    return Door.at("127.0.0.1", 8000, with_token=True)


def test_the_word_opens_and_a_cookie_keeps_it(door):
    user = browser(door)
    assert user.get("/").status_code == 403
    opened = user.get("/", params={"token": door.token})
    assert opened.status_code == 200 and door.token not in opened.text and "inside" not in opened.text
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and door.cookie in cookie
    assert opened.headers["referrer-policy"] == "no-referrer"
    assert user.get("/").text == "inside" and user.get("/deep/er").text == "inside"
    assert "8000" in door.cookie and len(door.token) >= 40
    assert Door.at("127.0.0.1", 8000, with_token=True).token != door.token


@pytest.mark.parametrize("word", ["", "x", "\u00e9", "wrong" * 9])
def test_another_word_does_not(door, word):
    user = browser(door)
    assert user.get("/", params={"token": word}).status_code == 403
    user.cookies.set(door.cookie, "wrong")
    assert user.get("/").status_code == 403


def test_the_word_is_compared_in_constant_time(door, monkeypatch):
    compared = []
    monkeypatch.setattr(secrets, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    assert browser(door).get("/", params={"token": "x"}).status_code == 403
    assert compared == [(b"x", door.token.encode())]


def test_the_word_opens_the_start_alone(door):
    """Else a page of the server's could be made to lead elsewhere by its address."""
    assert browser(door).get(f"{HOME}//evil.example?token={door.token}").status_code == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:9000", "http://127.0.0.1", "file://"]
)
def test_a_form_of_another_page_is_refused(origin):
    headers = {} if origin is None else {"Origin": origin}
    assert browser(LOCAL).post("/", headers=headers).status_code == 403


def test_a_form_of_its_own_page_passes():
    assert browser(LOCAL).post("/", headers={"Origin": HOME}).text == "inside"
    far = {"Host": "localhost:22", "Origin": "http://localhost:22"}
    assert browser(LOCAL).post("/", headers=far).text == "inside", "through a tunnel"


def test_every_answer_says_what_browsers_may_do(door):
    for user in (browser(LOCAL), browser(door)):
        for answer in (user.get("/"), user.get("/", headers={"Host": "evil.example"}), user.post("/")):
            assert {key: answer.headers[key] for key in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_there_are_no_websockets():
    with pytest.raises(WebSocketDisconnect), browser(LOCAL).websocket_connect("/"):
        pass
