"""Architectures of language models in transformers, small and random: rows beside the model's own."""

from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.helpers.architectures import LANGUAGE, quiet, table, try_architecture

pytestmark = pytest.mark.long
SHARE = 2
"""Every second one is tried here; `python -m tests.helpers.architectures` tries all."""
BY_IMAGES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "internvl", "smolvlm")


def tried(kinds, folder):
    with ProcessPoolExecutor(2, initializer=quiet) as pool:
        return list(pool.map(try_architecture, kinds, [folder / kind for kind in kinds], chunksize=4))


def test_no_row_is_wrong_and_nearly_all_train(tmp_path):
    found = [each for each in tried(LANGUAGE[::SHARE], tmp_path) if each.how != "not built"]
    print(table(found))
    assert len(found) >= 100
    wrong = [each for each in found if each.trains and not each.apart < 1e-5]
    assert not wrong and not [each for each in found if each.how == "failed"]
    assert sum(each.trains for each in found) >= 0.9 * len(found)


def test_text_towers_of_models_that_also_read_images(tmp_path):
    found = tried(BY_IMAGES, tmp_path)
    print(table(found))
    assert all(each.trains and each.apart < 1e-5 for each in found)
