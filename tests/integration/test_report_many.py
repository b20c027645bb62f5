"""`sae-dist report` of a grid and of a sweep: every dictionary has a row, whatever became of it."""

import html
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest

from sae_dist.cli import main
from sae_dist.config.run import load_config, save_config
from tests.helpers.browser import Tags, browse, is_light, measured, needs_browser, watched
from tests.helpers.commands import TINY
from tests.helpers.small_llm import SMALL_LLM, save_small_llm
from tests.helpers.warm import warm

PLANTED = "<script>document.title='taken'</script>"
NAMES = ("<img src=x onerror=alert(1)>&\"'", "javascript:alert(1)", "100% #2?")
SECTIONS = set("warnings about dictionaries curves results seeds speed evaluation config".split())
UNUSED = shutil.ignore_patterns("checkpoints", "report.html")
LATENTS, KS, SEEDS = (64, 128), (4, 8), (0, 1)


def member(latents: int, k: int, seed: int) -> str:
    return f"num_latents={latents},k={k},seed={seed}"


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    words = ["train_tokens=7680", "eval.tokens=2000", "eval.ce_tokens=512", "checkpoint.every=null"]
    lists = ["grid.num_latents=[64,128]", "grid.k=[4,8]", "grid.seed=[0,1]"]
    tiny = [word for word in TINY if not word.startswith(("sae.num_latents=", "sae.k="))]
    done = warm(save_small_llm(folder), "train", *tiny, *SMALL_LLM, *words, *lists, "name=grid")
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "grid"


@pytest.fixture(scope="module")
def page(grid) -> Path:
    done = warm(grid.parents[1], "report", "outputs/grid")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "outputs/grid/report.html"
    return grid / "report.html"


@pytest.fixture
def changed(grid, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(grid, tmp_path / "grid", ignore=UNUSED))


@pytest.fixture
def sweep(grid, tmp_path) -> Path:
    """Dictionaries of the grid as runs of their own, in folders whose names try to be HTML and addresses."""
    folder = tmp_path / "a sweep"
    folder.mkdir()
    for name, k, shard in zip(NAMES, (8, 4, 8), (1, 1, 2), strict=True):
        run = folder / name
        shutil.copytree(grid / member(64, k, 0), run, ignore=UNUSED)
        shutil.copy(grid / "provenance.json", run)
        cfg = load_config(run / "config.yaml")
        cfg.name, cfg.topology.shard = name, shard
        save_config(cfg, run / "config.yaml")
    return folder


def made(folder: Path) -> str:
    """The page's text; addresses on it must lead to files beside it."""
    assert main(["report", str(folder)]) == 0
    page = folder / "report.html"
    text = page.read_text()
    tags = Tags(text)
    assert not tags.names & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    assert not any(name.startswith("on") for name in tags.attributes)
    for address in tags.addresses:
        if address.startswith("#"):
            assert f'id="{address[1:]}"' in text
        else:
            assert Path(unquote(urlparse(urljoin(page.resolve().as_uri(), address)).path)).is_file()
    return text


def rows(text: str) -> list[list[str]]:
    """Cells of the table of all dictionaries: number, name, status, what differs, results, tokens."""
    table = text[text.index('<table class="members">') :]
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    return [
        [
            html.unescape(re.sub(r"<[^>]*>", "", cell)).strip()
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row)
        ]
        for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    ]


def warned(text: str) -> list[str]:
    part = text[text.index('<section id="warnings">') : text.index('<section id="about">')]
    return [
        " ".join(html.unescape(re.sub(r"<[^>]*>", " ", each)).split())
        for each in re.findall(r"<li>.*?</li>", part, re.DOTALL)
    ]


def test_a_row_for_each_dictionary_of_a_grid(page, grid):
    text, summary = page.read_text(), json.loads((grid / "summary.json").read_text())
    wanted = [(latents, k, seed) for latents in LATENTS for k in KS for seed in SEEDS]
    found = rows(text)
    assert [row[1] for row in found] == [member(*values) for values in wanted]
    for row, values in zip(found, wanted, strict=True):
        its = summary["dictionaries"][row[1]]
        assert row[2:] == [
            "finished", *map(str, values), f"{its['fvu']:.4f}", f"{its['l0']:.1f}", "–",
            f"{its['ce_recovered']:.2%}", f"{its['lr']:.2e}", "7,680",
        ]  # fmt: skip
    assert f"{summary['cost']['share']:.0%}" in text and "batch 768; adam; seed 0" in text
    assert f"<code>sae-dist report outputs/grid/{member(64, 4, 0)}</code> and so on makes them" in text
    assert text.count('role="img"') == 5 and "All of them." in text


def test_seeds_are_those_of_the_grid(page, grid):
    text, pairs = page.read_text(), json.loads((grid / "summary.json").read_text())["seeds"]
    part = text[text.index('<section id="seeds">') : text.index('<section id="speed">')]
    assert len(pairs) == 4
    for pair in pairs:
        assert all(name in part for name in (pair["first"], pair["second"], f"{pair['matched']:.1%}"))
    assert [unquote(address) for address in re.findall(r'href="(.*?)"', part)] == [
        "./" + pair["file"] for pair in pairs
    ]


def test_the_same_page_again_links_to_pages_made_since(changed):
    (changed / member(64, 8, 0) / "report.html").write_text("its page")
    text = made(changed)
    assert (
        f'<a href="./{member(64, 8, 0)}/report.html">'.replace("=", "%3D")
        .replace("href%3D", "href=")
        .replace(",", "%2C")
        in text
    )
    assert text.count("report.html") == 1 and "Names without a link have none yet" in text


def test_what_is_unfinished_or_gone_is_said(changed):
    gone, stopped, broken, waits = (member(64, k, seed) for k in KS for seed in SEEDS)
    shutil.rmtree(changed / gone)
    (changed / stopped / "summary.json").unlink()
    lines = (changed / stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (changed / stopped / "metrics.jsonl").write_text("".join(lines[:6]) + lines[6][:20])
    given_up = {"tokens": 3840, "steps": 5, "status": "diverged", "reason": f"step 5: {PLANTED}"}
    (changed / broken / "summary.json").write_text(json.dumps(given_up))
    (changed / waits / "summary.json").unlink()
    (changed / waits / "metrics.jsonl").unlink()
    text = made(changed)
    found = {row[1]: [row[2], row[-1]] for row in rows(text)}
    assert list(found.values())[:4] == [
        ["missing", "–"],
        ["unfinished", "4,608 of 7,680"],
        ["diverged", "3,840 of 7,680"],
        ["not started", "0 of 7,680"],
    ]
    fvu = json.loads((changed / "summary.json").read_text())["dictionaries"][gone]["fvu"]
    assert rows(text)[0][6] == f"{fvu:.4f}" and "4 of 8 finished" in text
    told = warned(text)
    assert (
        f"The run is unfinished (step 6). {stopped} The run is not started (step 0). {waits} "
        f"Go on with: sae-dist resume {changed}"
    ) in told
    assert any(f"given up: step 5: {PLANTED}. {broken}" in each for each in told)
    assert any(f"folder is gone. {gone}" in each for each in told)
    # What the grid found of its seeds stays; without it, the page says when they are compared.
    (changed / "summary.json").unlink()
    assert "None: seeds are compared when the grid has ended." in made(changed)


def test_a_sweep_and_names_that_try_to_be_html(sweep):
    for name in NAMES[:2]:
        (sweep / name / "report.html").write_text("its page")
    evaluation = {"fvu": 0.5, PLANTED: {"a & b": 0.123456}, "probes": None, "redundancy": {"x": [1.0]}}
    (sweep / NAMES[0] / "eval.json").write_text(json.dumps(evaluation))
    (sweep / "sweep.csv").write_text(f"run,status\n{NAMES[0]},finished\n<b>gone</b>,finished\n")
    text = made(sweep)
    assert [(row[1], *row[3:6]) for row in rows(text)] == [
        (NAMES[1], "64", "4", "1"),
        (NAMES[0], "64", "8", "1"),
        (NAMES[2], "64", "8", "2"),
    ]
    assert sum("report.html" in address for address in Tags(text).addresses) == 2
    assert "sweep.csv lists 1 whose folders are gone: <b>gone</b>." in warned(text)[0]
    assert "0.1235" in text and "a &amp; b" in text and "<script>" not in text
    assert 'id="seeds"' not in text and f"sae-dist report &#39;{sweep}/100% #2?&#39;" in text


def test_a_grid_in_a_sweep_counts_once(sweep, changed):
    shutil.move(changed, sweep / "grid")
    for folder, hours in [(sweep / name, 1.0) for name in NAMES] + [
        (sweep / "grid" / member(latents, k, 0), 3.0) for latents in LATENTS for k in KS
    ]:
        summary = json.loads((folder / "summary.json").read_text())
        summary |= {"gpu_hours": hours, "joules": 100 * hours}
        (folder / "summary.json").write_text(json.dumps(summary))
    text = made(sweep)
    assert len(rows(text)) == 11 and f"grid/{member(64, 4, 0)}" in [row[1] for row in rows(text)]
    cost = text[text.index('<section id="speed">') :]
    # All were trained by the grid, so each says what its one stream took: three runs, and a grid.
    stream = 4 * summary["stream_seconds"]
    assert f"{stream:.1f} s" in cost[: cost.index("Time on the dictionaries")]
    assert cost.index("6.0 h") < cost.index("600.0 J") < cost.index("1.0 h") and "3.0 h" not in cost
    assert "./grid/seeds/" in text


def test_bad_input_is_one_line(changed, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    names = {"empty": "is not a run folder, nor a grid's", "nowhere": "is not a run folder, nor a grid's"}
    (tmp_path / "bare").mkdir()
    shutil.copy(changed / "config.yaml", tmp_path / "bare")
    names["bare"] = "a grid of 8 dictionaries, whose folders are all gone"
    for name, file, content in (
        ("summary", "summary.json", "{"),
        ("config", "config.yaml", "sae: 3"),
        ("firing", "export/sparsity.safetensors", "none"),
    ):
        damaged = shutil.copytree(changed, tmp_path / name) / member(128, 8, 1) / file
        damaged.write_text(content)
        names[name] = str(damaged)
    shutil.copytree(changed, tmp_path / "lacks")
    (tmp_path / "lacks" / member(64, 4, 0) / "config.yaml").unlink()
    names["lacks"] = f"{member(64, 4, 0)} is not a run folder: it has no config.yaml"
    for name, word in names.items():
        assert main(["report", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert word in err and err.count("\n") == 1, err
        assert not (tmp_path / name / "report.html").exists()


@needs_browser
def test_a_browser_shows_all_of_it_in_any_window(page, tmp_path):
    seen = measured(page, tmp_path, (390, 1280))
    assert sorted(each["width"] for each in seen) == [390, 1280]
    for each in seen:
        assert each["scroll"] <= each["width"] and each["wide"] == []
        assert set(each["sections"]) == SECTIONS and each["scripts"] == 1
        assert each["title"] == "grid – sae_dist report"
        assert len(each["ids"]) == len(set(each["ids"]))
    assert is_light(page, tmp_path, 1280) == (True, False)


@needs_browser
def test_the_page_asks_for_nothing(sweep):
    made(sweep)
    with watched() as (options, asked):
        dom = browse(*options, "--dump-dom", (sweep / "report.html").as_uri())
        assert dom.count('class="swatch"') >= 3 and asked == []
