"""The Unbalanced Abnormal prompt (Sec. 3.2): one normal token a product, several anomaly tokens a type."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import CLIPTokenizer

from seas.artifacts import write_json
from seas.errors import InputError

FILE = "prompts.json"


@dataclass(frozen=True)
class Prompts:
    """The learned tokens of one product and the prompts that they make.

    The order of ``anomaly_tokens`` is the product's numbering of its types. It is saved with the
    generator, and whoever uses the generator reads it from there.
    """

    product: str
    normal_tokens: list[str]
    anomaly_tokens: dict[str, list[str]]
    commas: bool

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
        return self.normal_tokens + [token for tokens in self.anomaly_tokens.values() for token in tokens]

    def normal(self) -> str:
        """The prompt of a normal image, ``a <ob>``."""
        return "a " + self._joined(self.normal_tokens)

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
            return cls(saved["product"], saved["normal_tokens"], tokens, saved["commas"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{folder} is no finished generator: {FILE} is missing or damaged") from None


def token_ids(tokenizer: CLIPTokenizer, tokens: Sequence[str]) -> list[int]:
    """The ids of the learned tokens."""
    return list(tokenizer.convert_tokens_to_ids(list(tokens)))


def token_positions(input_ids: list[int], wanted: Sequence[int]) -> list[int]:
    """Where the wanted ids stand in a tokenised prompt, in the order of ``wanted``.

    Raises InputError when the prompt was cut before one of them.
    """
    missing = [token for token in wanted if token not in input_ids]
    if missing:
        raise InputError(
            f"{len(missing)} learned tokens do not fit into the text encoder's {len(input_ids)} positions; "
            "lower generator.anomaly_tokens or generator.normal_tokens"
        )
    return [input_ids.index(token) for token in wanted]
