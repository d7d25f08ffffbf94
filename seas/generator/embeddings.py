"""Learned rows of the text encoder's embedding table (Sec. 3.2)."""

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from seas.errors import InputError
from seas.generator.prompts import Prompts


class NewRows(nn.Module):
    """An embedding table whose old rows are frozen and whose new rows are a parameter of their own.

    So neither a gradient nor weight decay can move an old row.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        """``table`` (V, C) holds the old rows; ``rows`` (n, C) follow them."""
        super().__init__()
        self.table = table.requires_grad_(False)
        self.rows = nn.Parameter(rows.clone())

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids (B, T) → embeddings (B, T, C)."""
        return nn.functional.embedding(input_ids, torch.cat([self.table.weight, self.rows]))


def add_tokens(pipeline: StableDiffusionPipeline, prompts: Prompts, *, normal_word: str, anomaly_word: str) -> NewRows:
    """Teach the tokenizer the prompts' learned tokens and give the text encoder their rows, each starting as a known word.

    Raises InputError when the tokenizer does not know a start word, knows a learned token, or does not fit the text encoder.
    """
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    table = text_encoder.get_input_embeddings()
    start = {
        word: _row_of_word(word, key, tokenizer, table)
        for word, key in ((normal_word, "generator.normal_word"), (anomaly_word, "generator.anomaly_word"))
    }
    new = tokenizer.add_tokens(prompts.tokens)
    if new != len(prompts.tokens) or len(tokenizer) != len(table.weight) + new:
        raise InputError(
            f"the base's tokenizer knows some of {', '.join(prompts.tokens)}, or another number of tokens than its text encoder's "
            f"{len(table.weight)}; a base must not be a fine-tuned generator"
        )
    rows = [start[normal_word if token in prompts.normal_tokens else anomaly_word] for token in prompts.tokens]
    new_rows = NewRows(table, torch.stack(rows) if rows else table.weight.new_empty(0, table.weight.shape[1]))
    text_encoder.set_input_embeddings(new_rows)
    return new_rows


def _row_of_word(word: str, key: str, tokenizer, table: nn.Embedding) -> Tensor:
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(f"{key}: the base's tokenizer does not know '{word}' as one word")
    return table.weight[ids[0]].detach()


def fold_tokens(pipeline: StableDiffusionPipeline, new_rows: NewRows) -> None:
    """Make the old and new rows one plain table again, so that the text encoder can be saved and loaded anywhere."""
    weight = torch.cat([new_rows.table.weight, new_rows.rows]).detach()
    pipeline.text_encoder.set_input_embeddings(nn.Embedding.from_pretrained(weight, freeze=True))
    pipeline.text_encoder.config.vocab_size = len(weight)
