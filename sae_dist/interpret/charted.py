"""The atlas of a dictionary in use, which encodes the texts that are looked for in it.

Letters: as core.types.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.atlas.find.direction import check_same
from sae_dist.atlas.find.text import TextCodes
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import EXPORT
from sae_dist.export.saelens import WEIGHTS
from sae_dist.interpret.explaining.explain import encoded
from sae_dist.interpret.explaining.rows import document_ids
from sae_dist.interpret.model import LanguageModel, model
from sae_dist.interpret.session import Session

if TYPE_CHECKING:
    from sae_dist.interpret.dictionary import Dictionary


def atlas_of(
    dictionary: "Dictionary", lm: Any = None, *, where: str | Path | None = None, force: bool = False
) -> Atlas:
    """Open the atlas that was made of a dictionary.

    Args:
        lm: encodes the texts that `find` is given: a model, or its name; None: the dictionary's own, loaded
            when it is first needed.
        where: the folder of the atlas, or of a run with it; None: beside the dictionary.
        force: go on with another model than the one that the dictionary was trained on.

    Raises:
        ConfigError: there is none, it is damaged, or it is of another dictionary.
    """
    folder = dictionary.place.folder
    atlas = Atlas.open(where or (folder.parent if folder.name == EXPORT else folder))
    if atlas.num_latents != dictionary.num_latents:
        raise ConfigError(
            f"{atlas.folder} is of {atlas.num_latents:,} latents, and the dictionary has "
            f"{dictionary.num_latents:,}; make the atlas again"
        )
    if (folder / WEIGHTS).is_file():
        check_same(folder, atlas.facts["dictionary"])
    atlas.decoder = dictionary.W_dec
    atlas.encode = Encoding(dictionary, lm, force)
    return atlas


class Encoding:
    """An encoding of texts by a dictionary and its model, which is loaded for the first of them."""

    def __init__(self, dictionary: "Dictionary", lm: Any, force: bool):
        self._dictionary, self._given, self._force = dictionary, lm, force
        self._loaded: LanguageModel | None = None

    def __call__(self, text: str) -> TextCodes:
        """Return the codes of a text's tokens that count.

        Raises:
            ConfigError: the model cannot be had, is another, or the text has no token that counts.
            DataError: activations are not finite.
        """
        if self._loaded is None:
            self._loaded = model(self._dictionary, self._given)
        force = self._force or isinstance(self._given, str | Path)  # one that is named is meant
        session = Session(self._dictionary, self._loaded, force)
        ids_S = document_ids(session, text)
        tokens, codes, _, _ = encoded(session, ids_S)
        mine_P = tokens.counted_S[codes.rows.cpu()]
        latent_P, row_P, value_P = (
            each.detach().cpu()[mine_P].numpy() for each in (codes.latents, codes.rows, codes.values.float())
        )
        return TextCodes(latent_P, value_P, row_P, tokens.pieces)
