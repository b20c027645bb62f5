"""The measures of mixing, against their definitions."""

import pytest
import torch

from sae_dist.bench.stream.mixing import intraclass, same_document


def test_rows_of_the_same_document_are_counted():
    # Document 7 has three rows, each with two others; documents 1 and 2 have one each.
    assert same_document(torch.tensor([7, 1, 7, 2, 7])) == pytest.approx(6 / 5)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_correlation_of_rows_of_a_document_is_recovered(share):
    draw = torch.Generator().manual_seed(0)
    document = torch.randint(200, (4000,), generator=draw)
    own, common = torch.randn(4000, 64, generator=draw), torch.randn(200, 64, generator=draw)
    x_BD = (1 - share) ** 0.5 * own + share**0.5 * common[document]
    assert intraclass(x_BD, document) == pytest.approx(share, abs=0.02)
    assert intraclass(x_BD, torch.arange(4000)) == 0.0, "nothing to compare"
