"""BiSeNetV2 (Yu et al. 2021): a shallow wide branch for detail, a deep narrow one for meaning, and their guided aggregation."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

DETAIL = ((64, 2), (64, 3), (128, 3))
"""Channels and convolutions of the detail branch's stages, each of which halves the side."""
STEM = 16
SEMANTIC = ((32, 2), (64, 2), (128, 4))
"""Channels and blocks of the semantic branch's stages after the stem."""
EXPANSION = 6
HEAD = 1024
AUXILIARY_HEADS = ((16, 16), (32, 64), (64, 256), (128, 1024))
"""Input and inner channels of the heads that only train, on the stem and the three semantic stages."""


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, relu: bool = True
) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


class Stem(nn.Module):
    """(B, 3, H, W) → (B, 16, H/4, W/4): a strided convolution beside a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _conv(3, STEM, 3, 2)
        self.convolutions = nn.Sequential(_conv(STEM, STEM // 2, 1), _conv(STEM // 2, STEM, 3, 2))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fuse = _conv(2 * STEM, STEM, 3)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        return self.fuse(torch.cat([self.convolutions(first), self.pool(first)], dim=1))


class GatherAndExpansion(nn.Module):
    """3×3 → depthwise 3×3 with six times the channels → 1×1, with a shortcut; ``stride`` 2 halves the side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * inputs
        if stride == 1:
            depthwise = [_conv(inputs, inner, 3, groups=inputs)]
            self.shortcut: nn.Module = nn.Identity()
        else:
            depthwise = [_conv(inputs, inner, 3, 2, inputs, relu=False), _conv(inner, inner, 3, groups=inner)]
            self.shortcut = nn.Sequential(
                _conv(inputs, inputs, 3, 2, inputs, relu=False), _conv(inputs, outputs, 1, relu=False)
            )
        self.branch = nn.Sequential(_conv(inputs, inputs, 3), *depthwise, _conv(inner, outputs, 1, relu=False))

    def forward(self, feature: Tensor) -> Tensor:
        return torch.relu(self.branch(feature) + self.shortcut(feature))


class ContextEmbedding(nn.Module):
    """Adds what the whole picture holds to each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.gather = _conv(channels, channels, 1)
        self.last = _conv(channels, channels, 3)

    def forward(self, feature: Tensor) -> Tensor:
        return self.last(feature + self.gather(self.norm(feature.mean((2, 3), keepdim=True))))


class BilateralGuidedAggregation(nn.Module):
    """Joins detail (B, C, h, w) and meaning (B, C, h/4, w/4): each gates the other, at both sizes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail_keep = nn.Sequential(
            _conv(channels, channels, 3, groups=channels, relu=False), nn.Conv2d(channels, channels, 1)
        )
        self.detail_down = nn.Sequential(_conv(channels, channels, 3, 2, relu=False), nn.AvgPool2d(3, 2, 1))
        self.semantic_up = _conv(channels, channels, 3, relu=False)
        self.semantic_keep = nn.Sequential(
            _conv(channels, channels, 3, groups=channels, relu=False), nn.Conv2d(channels, channels, 1)
        )
        self.fuse = _conv(channels, channels, 3)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        fine = self.detail_keep(detail) * torch.sigmoid(_resized(self.semantic_up(semantic), detail))
        coarse = self.detail_down(detail) * torch.sigmoid(self.semantic_keep(semantic))
        return self.fuse(fine + _resized(coarse, fine))


class Head(nn.Sequential):
    """A 3×3 convolution and a 1×1 one to the classes."""

    def __init__(self, inputs: int, inner: int, classes: int) -> None:
        super().__init__(_conv(inputs, inner, 3), nn.Conv2d(inner, classes, 1))


class BiSeNetV2(nn.Module):
    """Images (B, 3, H, W), sides multiples of 32 → logits (B, classes, H, W).

    3,341,458 parameters with two classes, the auxiliary heads not counted. Its heads are simpler than mmsegmentation's, whose
    auxiliary ones have two 3×3 convolutions each and whose main one drops a tenth of its channels in training.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        detail: list[nn.Module] = []
        inputs = 3
        for channels, count in DETAIL:
            for number in range(count):
                detail.append(_conv(inputs, channels, 3, 2 if number == 0 else 1))
                inputs = channels
        self.detail = nn.Sequential(*detail)
        self.stem = Stem()
        stages: list[nn.Module] = []
        inputs = STEM
        for channels, count in SEMANTIC:
            blocks = [
                GatherAndExpansion(inputs, channels, 2),
                *(GatherAndExpansion(channels, channels, 1) for _ in range(count - 1)),
            ]
            stages.append(nn.Sequential(*blocks))
            inputs = channels
        self.semantic = nn.ModuleList(stages)
        self.context = ContextEmbedding(inputs)
        self.aggregation = BilateralGuidedAggregation(inputs)
        self.head = Head(inputs, HEAD, classes)
        self.auxiliary_heads = nn.ModuleList(Head(channels, inner, classes) for channels, inner in AUXILIARY_HEADS)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        logits, _ = self._logits(images)
        return logits

    def training_logits(self, images: Tensor) -> list[Tensor]:
        """The logits, and after them those of the four auxiliary heads, each (B, classes, H, W)."""
        logits, features = self._logits(images)
        heads = zip(self.auxiliary_heads, features, strict=True)
        return [logits, *(_resized(head(feature), images) for head, feature in heads)]

    def _logits(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = [self.stem(images)]
        for stage in self.semantic:
            features.append(stage(features[-1]))
        joined = self.aggregation(self.detail(images), self.context(features[-1]))
        return _resized(self.head(joined), images), features
