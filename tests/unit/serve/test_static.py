"""Pages of some latents as a folder: whole, without a server, and with nothing of one."""

import re

import pytest

from sae_dist.core.errors import ConfigError
from sae_dist.serve.static import write_pages
from tests.helpers.browser import Tags
from tests.helpers.served import evil_atlas

CHOSEN = [5, 3, 4, 7, 3]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    atlas = evil_atlas(tmp_path_factory.mktemp("run"))
    atlas.labels.set(3, "<i>three</i>", "confirmed", "me")
    return atlas


@pytest.fixture(scope="module")
def folder(atlas, tmp_path_factory):
    return write_pages(atlas, tmp_path_factory.mktemp("out") / "pages", CHOSEN).parent


def test_each_link_leads_to_a_file(folder):
    pages = sorted(folder.rglob("*.html"))
    assert [page.name for page in pages] == ["index.html", "3.html", "4.html", "5.html", "7.html"]
    for page in pages:
        tags = Tags(page.read_text())
        for address in tags.addresses:
            path = address.partition("#")[0]
            assert (page.parent / path).resolve().is_file() if path else address == "#main"
            assert (page.parent / path).resolve().is_relative_to(folder.resolve())


def test_nothing_of_a_server_is_shown(folder):
    for page in folder.rglob("*.html"):
        text = page.read_text()
        tags = Tags(text)
        assert not {"input", "textarea", "select"} & tags.names - {"input"} and 'method="post"' not in text
        assert "Try a sentence" not in text and "reviews.sqlite" not in text
        assert "style" not in tags.attributes and "default-src 'none'" in text
        assert str(folder) not in text


def test_pages_say_what_the_server_says(folder, atlas):
    page = (folder / "latents" / "3.html").read_text()
    assert page.count('class="context"') == len(atlas.examples(3))
    assert "&lt;i&gt;three&lt;/i&gt;" in page and "&lt;script&gt;alert(1)" in page
    listed = re.findall(r'class="latent" href="latents/(\d+)\.html"', (folder / "index.html").read_text())
    assert listed == ["5", "3", "4", "7"]
    assert 'rel="prev" href="../latents/5.html"' in page and 'rel="next" href="../latents/4.html"' in page


@pytest.mark.parametrize("latents", [[], [600], [-1], [True]])
def test_latents_that_cannot_be_chosen(atlas, tmp_path, latents):
    with pytest.raises(ConfigError):
        write_pages(atlas, tmp_path / "out", latents)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_not_written_over(atlas, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="has files already"):
        write_pages(atlas, tmp_path, [3])
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]
