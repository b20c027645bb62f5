"""The pages of a server: what each says, that nothing in it is obeyed, and what is refused."""

import html
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pyarrow.parquet as pq
import pytest

from sae_dist.atlas.schema import LATENTS, part_file, parts
from sae_dist.serve import asked
from sae_dist.serve.words import passage
from tests.helpers.browser import Tags
from tests.helpers.served import OWN, client, evil_atlas

F = 600
TOKEN = "token="


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    return evil_atlas(tmp_path_factory.mktemp("run"))


@pytest.fixture
def user(atlas):
    atlas.labels.path.unlink(missing_ok=True)
    return client(atlas, author="me")


PAGES = ["/", "/?order=rare&silent=1", "/latent/3", "/latent/599", "/latent/3/at/40", "/find?q=t7", "/find"]
PAGES += ["/find?q=3&by=direction", "/sentence", "/nothing", "/latent/600", "/find?q=%3Cscript%3E"]


def places(text, key="a"):
    return [int(each) for each in re.findall(r'class="latent" href="[^"]*latent/(\d+)"', text)]


@pytest.mark.parametrize("path", PAGES)
def test_nothing_of_a_page_is_obeyed(user, path):
    answer = user.get(path)
    tags = Tags(answer.text)
    assert "style" not in tags.attributes and "style" not in tags.names
    assert not [each for each in tags.attributes if each.startswith("on")]
    assert re.findall(r"<script[^>]*>", answer.text) == [
        f'<script src="{"../" * (path.count("/", 1))}assets/atlas.js" defer>'.replace("?", "")
    ]
    assert all(not re.match(r"[a-z]+:|//", each or "") for each in tags.addresses), "nothing from elsewhere"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", answer.text)
    assert "alert(1)" not in re.sub("&lt;script&gt;alert", "", answer.text)


def test_what_tokens_hold_is_shown_as_it_is(user):
    page = user.get("/latent/3").text
    contexts = re.findall(r'<li class="context".*?</li>', page, flags=re.S)
    assert any("&lt;script&gt;alert(1)" in each for each in contexts)
    assert any("\\u202egnp.exe" in each for each in contexts)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\\u202egnp.exe\\x1b[31m" in page
    assert "&#34; onload=&#34;x" in page
    assert "{{ 7*7 }}" in page or "49" not in page


def test_the_start_lists_all_latents_that_fire_once(user, atlas):
    seen, path = [], "/"
    while path:
        page = user.get(path).text
        seen += places(page)
        found = re.search(r'rel="next" href="([^"#]*)', page)
        path = "/" + found[1].replace("&amp;", "&").removeprefix("./") if found else None
    counts = atlas.counts
    wanted = [each for each in range(F) if counts[each]]
    assert sorted(seen) == wanted and len(seen) == len(wanted)
    assert [counts[each] for each in seen] == sorted(counts[wanted], reverse=True)
    assert f"{len(wanted):,} of {F:,} latents" in page


def test_a_latent_has_what_its_tables_say(user, atlas):
    row = pq.read_table(part_file(atlas.folder, LATENTS, 0)).to_pylist()[3]
    page = user.get("/latent/3").text
    assert f"{row['count']:,} of {atlas.facts['kept']:,}" in page
    for example in atlas.examples(3):
        assert f'title="code {example.code:.6g}, token' in page
    assert page.count('class="context"') == len(atlas.examples(3))
    assert f'href="../latent/{row["near"][0]["latent"]}"' in page
    assert "random tokens" in page and "layers.1:out" in page and "out of layer 1" in page


def test_shades_are_the_codes(user, atlas):
    most = atlas.latent(3).most
    page = user.get("/latent/3").text
    for shade, code in re.findall(r'class="k(\d+)[^"]*" title="code ([\d.e+-]+),', page):
        assert abs(int(shade) - 10 * float(code) / most) <= 1.001


def test_a_latent_that_never_fires_says_so(user, atlas):
    silent = int((atlas.counts == 0).nonzero()[0][0])
    page = user.get(f"/latent/{silent}").text
    assert "never fired" in page and "no context to show" in page


def test_the_next_latent_is_one_that_fires(user, atlas):
    counts = atlas.counts
    for latent in (0, 17, F - 1):
        page = user.get(f"/latent/{latent}").text
        for rel, others in (("prev", range(latent - 1, -1, -1)), ("next", range(latent + 1, F))):
            wanted = next((each for each in others if counts[each]), None)
            found = re.search(rf'rel="{rel}" href="\.\./latent/(\d+)"', page)
            assert (int(found[1]) if found else None) == wanted


def test_a_search(user, atlas):
    assert user.get("/find?q=12").headers["location"] == "latent/12"
    page = user.get("/find", params={"q": " t7", "by": "token"}).text
    assert places(page) == atlas.find(token=7, top=30).latents
    together = places(user.get("/find?q=3&by=together").text)
    assert together == atlas.find(together=3, top=30).latents
    assert "no regular expression" in user.get("/find?q=(&by=regex").text


def test_filters(user, atlas):
    rates = atlas.rates
    page = user.get("/?low=0.01&high=0.1").text
    assert places(page) and all(0.01 <= rates[each] <= 0.1 for each in places(page))
    by_token = user.get("/", params={"where": "tokens", "token": " t7"}).text
    files = [pq.read_table(part_file(atlas.folder, LATENTS, part)) for part in range(parts(F))]
    lists = [each for file in files for each in file.column("tokens").to_pylist()]
    named = [n for n, each in enumerate(lists) if 7 in [one["token"] for one in each]]
    assert set(places(by_token)) <= set(named) and f">{len(named):,} of" in by_token
    assert user.get("/", params={"where": "tokens", "token": "#7"}).text.count(
        'role="row"'
    ) == by_token.count('role="row"')


def test_a_label_is_kept_and_found(user, atlas):
    sent = {"text": "<b>bold</b> claim", "state": "confirmed", "author": "me"}
    answer = user.post("/latent/5/label", data=sent, headers=OWN)
    assert answer.status_code == 303 and answer.headers["location"] == "../5"
    assert "&lt;b&gt;bold&lt;/b&gt; claim" in user.get("/latent/5").text
    assert places(user.get("/?state=confirmed").text) == [5] == places(user.get("/?state=labelled").text)
    assert 5 not in places(user.get("/?state=none&order=number").text)
    assert places(user.get("/?state=rejected").text) == []
    user.post("/latent/5/label", data=sent | {"state": "rejected"}, headers=OWN)
    assert places(user.get("/?state=rejected").text) == [5]
    assert "1 earlier" in user.get("/latent/5").text
    assert [each.state for each in atlas.labels.history(5)] == ["rejected", "confirmed"]


def test_labels_of_a_folder_that_cannot_be_written(user, atlas, monkeypatch):
    monkeypatch.setattr("sae_dist.serve.site.os.access", lambda *_: False)
    assert "is read-only" in user.get("/latent/5").text
    answer = user.post("/latent/5/label", data={"text": "x"}, headers=OWN)
    assert answer.status_code == 409 and not atlas.labels.path.exists()


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/latent/5/label", {"text": ""}, 400),
        ("/latent/5/label", {"text": "x", "state": "sure"}, 400),
        ("/latent/5/label", {"text": "x" * 2001}, 400),
        ("/latent/5/label", {"text": "\u202ex"}, 400),
        ("/latent/600/label", {"text": "x"}, 404),
        ("/sentence", {"text": ""}, 400),
        ("/sentence", {"text": "x" * 2001}, 400),
        ("/sentence", {"text": "x", "latent": "600"}, 400),
        ("/sentence", {"text": "x"}, 422),
        ("/steer", {"text": "x", "latent": "1", "dose": "nan"}, 400),
        ("/steer", {"text": "x", "latent": "1", "dose": ""}, 400),
        ("/steer", {"text": "x", "latent": "1", "dose": "1", "tokens": "65"}, 400),
        ("/steer", {"text": "x", "latent": "1", "dose": "1", "how": "explode"}, 400),
        ("/steer", {"text": "x", "latent": "", "dose": "1"}, 422),
        ("/", {"text": "x"}, 405),
    ],
)
def test_a_form_that_is_not_right(user, atlas, path, sent, status):
    answer = user.post(path, data=sent, headers=OWN)
    assert answer.status_code == status and "<h1>" in answer.text
    assert not atlas.labels.path.exists()


@pytest.mark.parametrize(
    "query",
    ["order=x", "low=a", "high=nan", "low=1e999", "state=x", "where=x", "after=1", "after=x~1", "after=1~x"]
    + [
        "before=1~-1",
        "x=" + "y" * 9000,
        *(f"where=up&{TOKEN}{each}" for each in ("x" * 101, "no+such", "%239" + 30 * "9")),
    ],
)
def test_an_address_that_is_not_right(user, query):
    assert user.get(f"/?{query}").status_code in (400, 414)


def test_forms_have_bounds(user):
    long = urlencode({"text": "x", "more": "y" * asked.MOST_BYTES})
    form = OWN | {"Content-Type": "application/x-www-form-urlencoded"}
    assert user.post("/sentence", content=long, headers=form).status_code == 413
    many = "&".join(f"a{n}=1" for n in range(asked.MOST_FIELDS + 1))
    assert user.post("/sentence", content=many, headers=form).status_code == 400
    assert user.post("/sentence", content="text=%ff", headers=form).status_code == 400
    assert user.post("/sentence", content=b"\xff", headers=form).status_code == 400
    assert user.post("/sentence", json={"text": "x"}, headers=OWN).status_code == 415
    assert user.get("/find?q=" + "x" * 401).status_code == 400
    assert user.get("/latent/99999999999999999999").status_code == 404


def test_without_a_model_the_page_says_why(user):
    for path in ("/latent/3", "/sentence"):
        page = user.get(path).text
        assert "no model in this test" in page and 'action="' in page
    assert "no model in this test" in user.post("/sentence", data={"text": "x"}, headers=OWN).text


def test_assets(user):
    for name, kind in (("atlas.css", "text/css"), ("atlas.js", "text/javascript")):
        assert user.get(f"/assets/{name}").headers["content-type"].startswith(kind)
    assert user.get("/assets/..%2fapp.py").status_code == 404
    assert user.get("/assets/base.html").status_code == 404


def test_damage_is_a_page_of_one_line(tmp_path):
    atlas = evil_atlas(tmp_path)
    path = part_file(atlas.folder, LATENTS, 1)
    path.write_bytes(path.read_bytes()[:-9])
    answer = client(atlas).get("/latent/300")
    assert answer.status_code == 500 and "make the atlas again" in answer.text


def test_a_place_shows_the_text_around_with_the_latents_codes(user, atlas):
    example = atlas.examples(3)[0]
    page = user.get(f"/latent/3/at/{example.context.at}").text
    wide = atlas.context(example.context.at, 3, 256, 256)
    quoted = re.search(r'<p class="sentence passage"[^>]*>(.*?)</p>', page, flags=re.S)[1]
    assert html.unescape(re.sub("<[^>]*>", "", quoted)) == "".join(passage(each.text) for each in wide.tokens)
    assert page.count('title="code ') == sum(each.code > 0 for each in wide.tokens)
    assert user.get(f"/latent/3/at/{atlas.facts['tokens']}").status_code == 404


def test_damaged_labels_leave_the_pages_alone(user, atlas):
    atlas.labels.path.write_bytes(b"no database" * 99)
    try:
        assert places(user.get("/").text) and "Labels cannot be read" in user.get("/latent/5").text
        assert user.post("/latent/5/label", data={"text": "x"}, headers=OWN).status_code == 409
        assert user.get("/?state=none").status_code == 500
    finally:
        atlas.labels.path.unlink()


def test_many_ask_at_once(user):
    paths = [f"/latent/{n}" for n in range(12)] + ["/", "/?order=rare", "/?where=tokens&token=%23" + "7"] * 4
    once = {path: user.get(path).text for path in paths}
    with ThreadPoolExecutor(8) as pool:
        for path, text in zip(paths, pool.map(lambda path: user.get(path).text, paths), strict=True):
            assert text == once[path]
