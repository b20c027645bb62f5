"""A latent in a notebook: everything is there, escaped, and nothing is fetched or run."""

import re
from html.parser import HTMLParser

import pytest

from sae_dist.atlas.read.atlas import Atlas
from tests.helpers.described import described

HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J\"onload='x'&amp;"


class Hostile:
    """A decoder whose every token is hostile markup."""

    tokenizer = "one"

    def __len__(self):
        return 500

    def pieces(self, ids):
        return [HOSTILE for _ in ids]

    def token(self, number):
        return HOSTILE


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.names, self.text = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return described(tmp_path_factory.mktemp("run") / "atlas", 300)


def parsed(html):
    tags = Tags()
    tags.feed(html)
    return tags


def test_hostile_tokens_are_text(folder):
    atlas = Atlas.open(folder, Hostile())
    atlas.labels.set(3, "<b onclick=x>label</b>")
    for html in (atlas[3]._repr_html_(), atlas.find(token=2)._repr_html_()):
        tags = parsed(html)
        assert set(tags.found) <= set(
            "div style p b dl dt dd span code h4 i table thead tbody tr th td".split()
        )
        assert tags.names <= {"class", "style", "title", "role", "aria-label"}
        assert "\x1b" not in html and "\u202e" not in html and "url(" not in html and "@import" not in html
    shown = "".join(parsed(atlas[3]._repr_html_()).text)
    assert "<script>alert(1)</script>" in shown and "<b onclick=x>label</b>" in shown
    assert "\x1b" not in str(atlas[3]) and "\u202e" not in str(atlas[3])


def test_a_view_has_what_the_tables_have(folder):
    atlas = Atlas.open(folder)
    view, about = atlas[3], atlas.latent(3)
    html = view._repr_html_()
    shown = " ".join(parsed(html).text)
    assert f"fires on {about.count:,} of" in shown and f"codes from {about.least:.3g}" in shown
    assert len(re.findall('class="context"', html)) == len(view.examples) > 5
    for each in about.tokens:
        assert f"{each.bits:.2g}" in shown
    assert "greatest codes" in shown and f"drawn from {about.bins[1]:,}" in shown
    assert "nearest (cosine)" in shown and "fires together with" in shown and "raises the logits" in shown
    darkest = max(float(each) for each in re.findall(r"--shade: ([\d.]+)", html))
    assert darkest == 0.75, "the greatest code is darkest"
    assert html.count("--height: 100.0") >= 1
    assert f"{view.examples[0].code:8.3g}  " in str(view)


def test_a_silent_latent_and_a_rare_one(folder):
    atlas = Atlas.open(folder)
    silent = atlas[299]
    assert "it fires on none of" in str(silent) and "histogram" not in silent.to_html().split("</style>")[1]
    rare = next(latent for latent in range(300) if 0 < atlas.counts[latent] < atlas.facts["few"])
    assert "too rare for claims" in str(atlas[rare])
