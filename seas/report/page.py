"""The report as one HTML page that needs nothing beside itself."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from seas.report.tables import TextTable

JPEG_QUALITY = 86


@dataclass(frozen=True)
class Picture:
    """A figure of the page. ``photographs`` tells a contact sheet, kept as JPEG, from a chart, kept as PNG."""

    path: Path
    caption: str
    photographs: bool = False

    @property
    def data(self) -> str:
        """The picture as a data URI."""
        if not self.photographs:
            return _data_uri("image/png", self.path.read_bytes())
        with Image.open(self.path) as image, io.BytesIO() as buffer:
            image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
            return _data_uri("image/jpeg", buffer.getvalue())


@dataclass(frozen=True)
class Block:
    """One heading with sentences, a table and pictures below it. ``folded``: the table opens by a click."""

    heading: str
    sentences: Sequence[str] = ()
    table: TextTable | None = None
    pictures: Sequence[Picture] = ()
    folded: bool = False


@dataclass(frozen=True)
class Part:
    """What the page says about one experiment on one dataset, with sentences below its title."""

    title: str
    anchor: str
    blocks: Sequence[Block] = field(default_factory=list)
    sentences: Sequence[str] = ()


def render(overview: TextTable, parts: Sequence[Part], limits: Sequence[str]) -> str:
    """The page: what ran, one part for each experiment on each dataset, and what the numbers do not say."""
    source = (files("seas.report") / "page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(overview=overview, parts=parts, limits=limits)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
