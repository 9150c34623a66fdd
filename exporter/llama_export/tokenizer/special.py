"""BOS and EOS: which tokens they are, and whether a text gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_export.checkpoint.json_file import shown
from llama_export.errors import CheckpointError
from llama_export.tokenizer.added_tokens import CONFIG, special_names

Token = tuple[str, int]


@dataclass(frozen=True)
class Special:
    """What is put around a text.

    Attributes:
        bos: Name and id of the token that opens a text; None where there is none.
        eos: The same for the token that ends one.
        add_bos: Whether a text gets BOS in front.
        add_eos: Whether it gets EOS behind.
    """

    bos: Token | None
    eos: Token | None
    add_bos: bool
    add_eos: bool

    @property
    def in_front(self) -> Token | None:
        """What a text gets in front."""
        return self.bos if self.add_bos else None

    @property
    def behind(self) -> Token | None:
        """What a text gets behind."""
        return self.eos if self.add_eos else None


def resolve_special(
    settings: Mapping[str, Any],
    id_of: Mapping[str, int],
    defaults: Mapping[str, str | None],
    enclosed: tuple[Sequence[int], Sequence[int]] | None,
) -> Special:
    """Settle what BOS and EOS are, and whether they are added.

    Args:
        settings: ``tokenizer_config.json`` over ``special_tokens_map.json``.
        id_of: Every token's id.
        defaults: Names of ``bos_token`` and ``eos_token`` where the settings have none.
        enclosed: What ``tokenizer.json`` puts in front of a text and behind it; None where a SentencePiece
            model or ranks decide, which put BOS in front.

    Raises:
        CheckpointError: ``tokenizer.json`` puts other tokens around a text, and no setting says which to.
    """
    names = dict(defaults) | special_names(settings)
    tokens: dict[str, Token | None] = {}
    for key in ("bos_token", "eos_token"):
        name = names.get(key)
        tokens[key] = (name, id_of[name]) if name is not None and name in id_of else None
    bos, eos = tokens["bos_token"], tokens["eos_token"]
    wanted = [settings.get(f"add_{key}") for key in tokens]
    if enclosed is None:
        adds = [True, False]
    else:
        own = [[token[1]] if token else [] for token in (bos, eos)]
        adds = [bool(ids) for ids in enclosed]
        for ids, expected, want in zip(enclosed, own, wanted, strict=True):
            if want is None and ids and list(ids) != expected:
                found = f"post_processor puts {shown(list(ids))} around a text, which is not BOS or EOS"
                remedy = f"name it as bos_token or eos_token in {CONFIG}"
                raise CheckpointError(f"tokenizer.json: {found}", remedy)
    add_bos, add_eos = (bool(add if want is None else want) for add, want in zip(adds, wanted, strict=True))
    return Special(bos, eos, add_bos and bos is not None, add_eos and eos is not None)
