"""What a notebook, a terminal and a program get of an explanation, also of hostile texts."""

import json
from html.parser import HTMLParser

import pytest
import torch

from tests.helpers.in_use import causal, dictionary
from tests.helpers.tiny_llms import TinyLlms

HOSTILE = "<script>alert('x')</script>\x1b[31m\"><img src=//a.b onerror=c> & {{ 7 * 7 }}\u202e\n"
TAGS = {"div", "style", "p", "h4", "span", "br", "table", "thead", "tbody", "tr", "th", "td", "b"}
PAGE = TAGS | {"html", "head", "meta", "title", "body"}


class Read(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.titles = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    lm = causal(TinyLlms(tmp_path_factory)("llama"), torch.float32)
    d = dictionary()
    labels = {latent: HOSTILE for latent in range(200)}
    return d.explain(lm, HOSTILE, labels=labels, rates=torch.full((200,), 0.01), top=7)


@pytest.mark.parametrize("whole", [False, True])
def test_hostile_words_stay_words(found, whole):
    html = found.to_html() if whole else found._repr_html_()
    read = Read(html)
    assert read.tags <= (PAGE if whole else TAGS)
    assert read.attributes <= {"class", "style", "title", "lang", "charset", "name", "content"}
    assert "<script" not in html and "url(" not in html and "@import" not in html and "http" not in html
    assert "49" not in read.text.split("{{")[-1][:12] and "{{ 7 * 7 }}" in read.text
    assert "<script>alert('x')</script>" in read.text
    assert any("<script>" in each for each in read.titles)
    assert len(read.titles) == 2 * found.about["tokens"]


def test_a_terminal_gets_no_orders(found):
    printed = str(found)
    assert all(each.isprintable() for line in printed.split("\n") for each in line)
    assert "\\x1b" in printed and "\\u202e" in printed
    assert printed.count("alert") >= 7
    assert repr(found).startswith("Explanation(")


def test_json_is_plain_and_whole(found):
    read = json.loads(found.to_json(), parse_constant=pytest.fail)
    assert len(read["codes"]) == len(found.codes.latents)
    # Three tokens are bytes of one sign, which alone are none.
    assert "".join(each["token"] for each in read["tokens"][1:]) == HOSTILE.replace("\u202e", "\ufffd" * 3)
    assert read["about"]["hook"] == "layers.1:out" and read["about"]["tokens"] == len(read["tokens"])
    assert read["latents"] == [dict(each) for each in found.latents.to_pylist()]


def test_as_many_latents_are_shown_as_asked(found):
    rows = Read(found._repr_html_())
    assert found._repr_html_().count("<tr") == 1 + 7
    assert len(found.latents_seen["latent"]) > 7
    assert f"{len(found.latents_seen['latent'])} latents fired" in rows.text
