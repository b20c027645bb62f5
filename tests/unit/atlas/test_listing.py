"""Latents in an order, page by page: each once, in order, forwards and backwards, with ties and filters."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.listing import INDEX, ORDERS, SHOWN, STEP, Filter, Listing
from sae_dist.atlas.schema import LATENTS, part_file, parts
from sae_dist.core.errors import ConfigError
from tests.helpers.described import described

F = 600


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    return Atlas.open(described(tmp_path_factory.mktemp("run") / "atlas", F))


@pytest.fixture(scope="module")
def listing(atlas):
    return Listing(atlas)


@pytest.fixture(scope="module")
def values(atlas):
    return {name: atlas.column(name, np.float64) for name in ("rate", "most", "documents")} | {
        "latent": np.arange(F)
    }


def walked(listing, which, order, size=37):
    """The pages of a list from the first to the last, and from there back."""
    pages = [listing.page(which, order, size=size)]
    assert pages[0].before is None
    while pages[-1].after is not None:
        pages.append(listing.page(which, order, after=pages[-1].after, size=size))
    back = pages[-1:]
    while back[0].before is not None:
        back.insert(0, listing.page(which, order, before=back[0].before, size=size))
    return pages, back


@pytest.mark.parametrize("order", ORDERS)
def test_each_latent_is_listed_once_in_order(listing, values, order):
    silent = order in ("strong", "number")
    pages, back = walked(listing, Filter(silent=silent), order)
    latents = [row["latent"] for page in pages for row in page.rows]
    column, falling = ORDERS[order]
    key = values[column] * (-1 if falling else 1)
    wanted = np.lexsort((np.arange(F), key))
    assert len(np.unique(key)) < F or column == "latent", "there are ties"
    assert latents == [each for each in wanted if silent or values["rate"][each] > 0]
    assert [page.rows for page in back] == [page.rows for page in pages]
    assert [(page.after, page.before) for page in back] == [(page.after, page.before) for page in pages]


def test_rows_are_those_of_the_tables(listing, atlas):
    for row in listing.rows([5, 300, 5]):
        latent = atlas.latent(row["latent"])
        assert set(row) == {*INDEX, *SHOWN} and row["count"] == latent.count and row["rate"] == latent.rate
        for name in SHOWN:
            assert row[name] == [each.token for each in getattr(latent, name)]


def test_filters_and_counts(listing, atlas):
    rates = atlas.rates
    inside = np.flatnonzero((rates >= 0.01) & (rates <= 0.1))
    which = Filter(0.01, 0.1)
    pages, _ = walked(listing, which, "number", size=7)
    assert [row["latent"] for page in pages for row in page.rows] == inside.tolist()
    assert listing.count(which) == len(inside) == listing.count(which)
    some = frozenset(inside[::2].tolist())
    for which, wanted in (
        (Filter(0.01, 0.1, among=some), some),
        (Filter(0.01, 0.1, without=some), set(inside.tolist()) - some),
        (Filter(among=frozenset()), set()),
    ):
        page = listing.page(which, size=F)
        assert {row["latent"] for row in page.rows} == wanted and listing.count(which) == len(wanted)


@pytest.mark.parametrize("where", ["tokens", "up", "lens_up", "near"])
def test_latents_that_name_a_token(listing, atlas, where):
    if where == "near":
        with pytest.raises(ConfigError, match="names no tokens"):
            listing.page(Filter(token=3, where=where))
        return
    files = [pq.read_table(part_file(atlas.folder, LATENTS, part)) for part in range(parts(F))]
    lists = [each for file in files for each in file.column(where).to_pylist()]
    for token in (3, 7, 499):
        wanted = [n for n, each in enumerate(lists) if token in [one["token"] for one in each or ()]]
        page = listing.page(Filter(token=token, where=where, silent=True), "number", size=F)
        assert [row["latent"] for row in page.rows] == wanted


def test_the_nearest_latent_that_fires(listing, atlas):
    counts = atlas.counts
    for latent in (0, 1, 250, F - 1):
        for step, others in ((1, range(latent + 1, F)), (-1, range(latent - 1, -1, -1))):
            assert listing.living(latent, step) == next((n for n in others if counts[n]), None)


def test_the_histogram_of_rates(listing, atlas):
    rates = atlas.rates[atlas.rates > 0]
    assert sum(count for _, count in listing.rates) == len(rates)
    for low, count in listing.rates:
        power = np.log10(rates)
        assert count == int(((power >= low) & (power < low + 1 / STEP)).sum())


def test_a_damaged_file_is_a_line(tmp_path):
    folder = described(tmp_path / "atlas", F)
    part_file(folder, LATENTS, 2).write_bytes(b"PAR1 none PAR1")
    with pytest.raises(ConfigError, match="make the atlas again"):
        Listing(Atlas.open(folder)).page(Filter())
