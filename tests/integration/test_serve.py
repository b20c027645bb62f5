"""`sae-dist serve` as a process: its address, its end, and pages in a real browser."""

import re
import signal
import socket
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import matplotlib.image
import pytest

from sae_dist.commands.main import main
from tests.helpers.browser import needs_browser
from tests.helpers.commands import start
from tests.helpers.devtools import Browser
from tests.helpers.served import atlas_run, evil_atlas


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return atlas_run(tmp_path_factory.mktemp("a") / "run")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An atlas without a run: tokens are numbers, and nothing slow is imported."""
    return evil_atlas(tmp_path_factory.mktemp("bare")).folder.parent


@pytest.fixture(scope="module")
def served(run):
    """The address of the run's pages."""
    with serving(run, "--no-model") as (_, address):
        yield address


@contextmanager
def serving(run: Path, *options: str):
    """The server as a process, and the address that it printed."""
    process = start(run.parent, "serve", str(run), *options)
    try:
        line = process.stdout.readline()
        found = re.match(r"(http://\S+)   \(Ctrl-C ends it\)$", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def get(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_what_cannot_be_served_is_a_line(run, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, said in (
            ([str(run), "--port", str(port)], f"--port {port} is in use"),
            ([str(tmp_path)], "has no atlas; make one: sae-dist atlas"),
            ([str(tmp_path / "none")], "does not exist"),
            ([str(run), "--port", "70000"], "--port"),
            ([str(run), "--host", "192.0.2.1"], "is no address of this machine"),
            ([str(run), "--host", ""], "--host needs an address"),
            ([], "run"),
        ):
            assert main(["serve", *arguments]) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and said in err, err


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_begins_and_ends_quietly(bare, number):
    with serving(bare, "--no-model") as (process, address):
        status, page = get(address)
        assert status == 200 and "600 latents" in page
        assert get(address, Host="evil.example")[0] == 421
        assert get(address + "latent/3")[0] == 200
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


@pytest.mark.long
def test_beyond_this_machine_a_word_opens_it(bare):
    with serving(bare, "--host", "0.0.0.0", "--no-model") as (process, address):
        port, word = re.search(r":(\d+)/\?token=(\S+)", address).groups()
        here = f"http://127.0.0.1:{port}/"
        assert get(here)[0] == 403 and get(here + "?token=x")[0] == 403
        assert "Go on" in get(f"{here}?token={word}")[1]
        assert get(here, Cookie=f"sae_dist_{port}={word}")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.long
def test_the_end_does_not_wait_for_the_model(run):
    """Ctrl-C while a sentence is being explained for the first time ends it, too."""
    with serving(run) as (process, address):
        get(address)
        form = (
            "POST /sentence HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nContent-Length: 6\r\n"
        )
        form += "Content-Type: application/x-www-form-urlencoded\r\n\r\ntext=a"
        with socket.create_connection(("127.0.0.1", int(re.search(r":(\d+)", address)[1]))) as asking:
            asking.sendall(form.encode())
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.shape(1360, 900)
        yield browser


@needs_browser
def test_keys(served, browser):
    browser.go(served)
    browser.press("j"), browser.press("j"), browser.press("k")
    first = browser.js("document.querySelector('.current a.latent').textContent")
    assert first == browser.js("document.querySelectorAll('a.latent')[0].textContent")
    browser.press("Enter", leaves=True)
    assert browser.js("location.pathname") == f"/latent/{first}"
    following = browser.js("document.querySelector('a[rel=next]').pathname")
    browser.press("n", leaves=True)
    assert browser.js("location.pathname") == following
    browser.press("p", leaves=True)
    assert browser.js("location.pathname") == f"/latent/{first}"
    browser.press("j")
    assert browser.js("document.querySelector('.current').className").startswith("context")
    browser.press("?")
    assert browser.js("document.getElementById('help').open")
    browser.press("Escape")
    assert not browser.js("document.getElementById('help').open")
    browser.press("/")
    assert browser.js("document.activeElement.id") == "search"
    for letter in "7n":
        browser.press(letter)
    assert browser.js("document.activeElement.value") == "7n", "keys are letters where one writes"
    browser.press("Escape"), browser.press("u", leaves=True)
    assert browser.js("location.pathname") == "/"
    assert browser.said == []
    assert all(each.startswith(served) for each in browser.asked)


@needs_browser
def test_a_label_by_hand_and_tabs(served, browser):
    browser.go(served + "latent/3")
    words = "<b>x</b>"
    browser.js("document.querySelector('#label textarea').focus()")
    browser.call("Input.insertText", text=words)
    before = browser._loaded
    browser.js("document.querySelector('#label button').click()")
    browser._wait(before)
    assert browser.js("location.pathname") == "/latent/3"
    assert browser.js("document.querySelector('h1').textContent").startswith(words)
    shown = "[...document.querySelectorAll('.tab')].map(each => each.offsetParent !== null)"
    assert browser.js(shown).count(True) == 1 and browser.js(shown)[0]
    browser.js("document.querySelector('label[for=tab-bin0]').click()")
    assert browser.js(shown).count(True) == 1 and browser.js(shown)[1]
    assert browser.said == []


@needs_browser
@pytest.mark.parametrize("path", ["", "latent/3", "find?q=the&by=token", "sentence", "latent/3/at/40"])
def test_a_phone_light_and_dark_and_without_scripts(served, browser, path, tmp_path):
    browser.shape(390, 1200, phone=True)
    bright = []
    for scheme in ("light", "dark"):
        browser.colours(scheme)
        browser.go(served + path)
        assert browser.js("document.documentElement.scrollWidth") == 390
        picture = matplotlib.image.imread(browser.picture(tmp_path / f"{scheme}.png"))
        bright.append(picture[..., :3].mean())
    assert bright[0] > 0.8 and bright[1] < 0.3
    text = browser.js("document.querySelector('main').innerText")
    browser.scripts(False)
    browser.go(served + path)
    browser.scripts(True)
    assert browser.js("document.querySelector('main').innerText") == text and browser.said == []


@needs_browser
def test_the_policy_holds_in_a_browser(served, browser):
    browser.go(served + "latent/3")
    refused = browser.js("fetch('/').then(() => 'sent', () => 'refused')")
    assert refused == "refused", "no script of a page sends anything"
    browser.js('document.body.innerHTML += \'<img src=x onerror="document.title = 1"><b style="color:red">\'')
    assert browser.js("document.title") != "1" and len(browser.said) >= 2
    assert browser.js("document.querySelector('b[style]').style.color") == ""


@needs_browser
def test_the_word_in_a_browser(bare, browser):
    """It leaves the address at once, and other pages of the server do not carry it."""
    with serving(bare, "--no-model", "--token") as (_, address):
        browser.go(address)
        browser.until("document.querySelector('h1') !== null")
        assert "token" not in browser.js("location.href")
        browser.go(address.split("?")[0] + "latent/3")
        assert browser.js("document.querySelector('h1') !== null")
        assert "token" not in browser.js("document.cookie"), "no script reads the cookie"


@needs_browser
def test_static_pages_from_a_folder(tmp_path, browser):
    from sae_dist.serve.static import write_pages

    start_page = write_pages(evil_atlas(tmp_path), tmp_path / "pages", range(3, 9))
    browser.shape(390, 1200, phone=True)
    browser.go(start_page.as_uri())
    assert browser.js("getComputedStyle(document.querySelector('.row:not(.head)')).display") == "grid"
    browser.press("j"), browser.press("Enter", leaves=True)
    assert browser.js("location.pathname").endswith("/latents/3.html")
    browser.press("n", leaves=True)
    assert browser.js("location.pathname").endswith("/latents/4.html")
    assert browser.js("document.documentElement.scrollWidth") == 390
    assert browser.said == [] and all(each.startswith("file://") for each in browser.asked)


def test_help(capsys):
    assert main(["serve", "--help"]) == 0
    assert "--no-model" in capsys.readouterr().out
