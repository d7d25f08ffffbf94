"""The Unbalanced Abnormal prompt (Sec. 3.2): one normal token a product, several anomaly tokens a type."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import CLIPTokenizer

from seas.artifacts import write_json
from seas.errors import InputError

FILE = "prompts.json"


@dataclass(frozen=True)
class Prompts:
    """The tokens of one product and the prompts that they make.

    ``learned``: the tokens are new ones whose embeddings train; else they are words of the base (the typical prompt
    of Tab. 5), and all types share one prompt. The order of ``anomaly_tokens`` is the product's numbering of its
    types. It is saved with the generator, and whoever uses the generator reads it from there.
    """

    product: str
    normal_tokens: list[str]
    anomaly_tokens: dict[str, list[str]]
    commas: bool
    learned: bool = True

    @classmethod
    def typical(cls, product: str, types: Sequence[str], *, anomaly_word: str) -> "Prompts":
        """``a photo of a {product} with defect``: fixed words, whatever the type."""
        return cls(product, re.split(r"[\W_]+", product), {name: [anomaly_word] for name in types}, False, False)

    @classmethod
    def of(cls, product: str, types: Sequence[str], *, normal: int, anomaly: int, commas: bool) -> "Prompts":
        """Name N' = ``normal`` tokens <ob_1>… and N = ``anomaly`` tokens a type, <df_{N(n-1)+1}> … <df_{Nn}> for type n."""
        return cls(
            product,
            [f"<ob_{k}>" for k in range(1, normal + 1)],
            {name: [f"<df_{anomaly * n + k}>" for k in range(1, anomaly + 1)] for n, name in enumerate(types)},
            commas,
        )

    @property
    def types(self) -> list[str]:
        """The anomaly types in the product's numbering."""
        return list(self.anomaly_tokens)

    @property
    def tokens(self) -> list[str]:
        """Every learned token, the normal ones first."""
        if not self.learned:
            return []
        return self.normal_tokens + [token for tokens in self.anomaly_tokens.values() for token in tokens]

    def normal(self) -> str:
        """The prompt of a normal image, ``a <ob>``."""
        return ("a " if self.learned else "a photo of a ") + self._joined(self.normal_tokens)

    def abnormal(self, anomaly_type: str) -> str:
        """The prompt of an image with a defect of this type, ``a <ob> with <df>, <df>, <df>, <df>``.

        Raises InputError for a type that the product does not have.
        """
        if anomaly_type not in self.anomaly_tokens:
            raise InputError(
                f"'{anomaly_type}' is no anomaly type of {self.product}; its types are {', '.join(self.types)}"
            )
        return f"{self.normal()} with {self._joined(self.anomaly_tokens[anomaly_type])}"

    def _joined(self, tokens: list[str]) -> str:
        return (", " if self.commas else " ").join(tokens)

    def save(self, folder: Path) -> None:
        """Write prompts.json."""
        write_json(asdict(self) | {"types": self.types}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "Prompts":
        """Read prompts.json.

        Raises InputError when ``folder`` is no finished generator.
        """
        try:
            saved = json.loads((Path(folder) / FILE).read_text())
            tokens = {name: saved["anomaly_tokens"][name] for name in saved["types"]}
            return cls(saved["product"], saved["normal_tokens"], tokens, saved["commas"], saved["learned"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{folder} is no finished generator: {FILE} is missing or damaged") from None


def models_of(generator: Path) -> list[Path]:
    """The folders of a generator's pipelines: itself, or one for each type where the types were trained apart."""
    apart = sorted(path.parent for path in Path(generator).glob(f"*/{FILE}"))
    return [Path(generator)] if (Path(generator) / FILE).exists() or not apart else apart


def token_ids(tokenizer: CLIPTokenizer, tokens: Sequence[str]) -> list[int]:
    """The ids of the tokens: one of each learned one, one or more of a word."""
    return [number for token in tokens for number in tokenizer(token, add_special_tokens=False).input_ids]


def token_positions(
    tokenizer: CLIPTokenizer, input_ids: Sequence[int], normal: Sequence[str], anomaly: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Where the normal and the anomaly tokens stand in a tokenised prompt, each in their order.

    A prompt ends with them, the normal ones first, so that the last place where an id stands is theirs: a word of the
    product's name, or the anomaly word, may stand in the prompt before, too.

    Raises InputError when the prompt was cut before one of them.
    """
    wanted = token_ids(tokenizer, normal)
    count = len(wanted)
    wanted += token_ids(tokenizer, anomaly)
    positions: list[int] = []
    before = len(input_ids)
    for token in reversed(wanted):
        before = max((place for place in range(before) if input_ids[place] == token), default=None)
        if before is None:
            raise InputError(
                f"the tokens of a prompt do not fit into the text encoder's {len(input_ids)} positions; lower "
                "generator.anomaly_tokens or generator.normal_tokens, or give the product or the type a shorter name"
            )
        positions.insert(0, before)
    return positions[:count], positions[count:]
