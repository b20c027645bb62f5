"""A page in a real browser, offline, and what its text is made of."""

import contextlib
import html
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=10000",
]
OWN = re.compile(r"(http://)?(?!fonts\.)[\w.-]+\.(google|googleapis|gvt1)\.com\b")
"""What the browser itself asks for, whatever it shows."""


def needs_browser(test):
    """Mark a test as long, and skip it where there is no browser."""
    missing = pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian's package of that name)")
    return pytest.mark.long(missing(test))


class Tags(html.parser.HTMLParser):
    """Elements of a page, and every address in it."""

    def __init__(self, text: str):
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.in_style = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.in_style = tag == "style"
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.addresses.append(value)
            self.addresses += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_data(self, data):
        if self.in_style:
            assert "<" not in data and "@import" not in data and "@font-face" not in data
            self.addresses += re.findall(r"url\(([^)]*)\)", data)

    def handle_endtag(self, tag):
        self.in_style = False


def browse(*arguments: str) -> str:
    assert BROWSER is not None
    done = subprocess.run([BROWSER, *QUIET, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Proxy(http.server.BaseHTTPRequestHandler):
    """Notes what is asked for, and has nothing."""

    def do_GET(self):
        if not OWN.match(self.path):
            self.server.asked.append(self.path)
        self.send_error(404)

    do_CONNECT = do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def watched():
    """A proxy for the browser; gives its options and the list of what it asked for."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"--proxy-server=http://127.0.0.1:{server.server_port}"
        yield [address, "--proxy-bypass-list=<-loopback>"], server.asked
        server.shutdown()


MEASURE = """<script>onload = () => {
  const wide = [...document.querySelectorAll("body *")].filter(each =>
    !each.closest(".scroll, pre, svg") && each.getBoundingClientRect().right > innerWidth + 1);
  const leaves = each => {
    const range = document.createRange();
    range.selectNodeContents(each);
    const right = each.getBoundingClientRect().right;
    return Math.max(0, ...[...range.getClientRects()].map(line => line.right - right));
  };
  const lines = [...document.querySelectorAll("article.latent .text, article.latent code")].map(leaves);
  parent.postMessage({
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    wide: wide.slice(0, 5).map(each => each.outerHTML.slice(0, 80)),
    out: lines.filter(by => by > 1).length,
    title: document.title,
    sections: [...document.querySelectorAll("section")].map(each => each.id),
    latents: document.querySelectorAll("article.latent").length,
    contexts: document.querySelectorAll("article.latent .text mark.fires").length,
    scripts: document.querySelectorAll("script").length,
    ids: [...document.querySelectorAll("[id]")].map(each => each.id),
  }, "*")
}</script>"""
WRAPPER = """<!doctype html><body><script>
let seen = [];
onmessage = event => { seen.push(event.data); document.body.dataset.seen = JSON.stringify(seen); };
</script>"""


def measured(page: Path, folder: Path, widths: tuple[int, ...]) -> list[dict]:
    """What a script sees in the page, at each width."""
    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
    text, found = re.subn(policy, "", page.read_text())
    assert found == 1
    (folder / "measured.html").write_text(text.replace("</body>", MEASURE + "</body>"))
    frames = "".join(
        f'<iframe src="measured.html" style="width:{w}px;height:800px;border:0"></iframe>' for w in widths
    )
    (folder / "wrapper.html").write_text(WRAPPER + frames)
    dom = browse("--dump-dom", (folder / "wrapper.html").as_uri())
    seen = re.search(r'data-seen="([^"]*)"', dom)
    assert seen, dom[:2000]
    return json.loads(html.unescape(seen[1]))


def is_light(page: Path, folder: Path, width: int) -> tuple[bool, bool]:
    """Whether the page is bright, and not black or white alone, where people want light and where dark."""
    found = []
    for number, option in enumerate(([], ["--blink-settings=preferredColorScheme=0"])):
        picture = folder / f"{number}.png"
        browse(*option, f"--screenshot={picture}", f"--window-size={width},1600", page.as_uri())
        pixels = (matplotlib.image.imread(picture)[..., :3] * 255).astype(np.uint8)
        assert pixels.shape[0] == 1600
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
        assert pixels.mean() > 200 or pixels.mean() < 80
        found.append(bool(pixels.mean() > 200))
    return found[0], found[1]
