"""The face parsing network: it labels each pixel with a part of the face.

A ResNet-18 computes features at 1/8, 1/16 and 1/32 of the picture's size; two attention modules bring the deep features
back up, and a fusion module joins them with the finest ones. Names and shapes of all tensors are those of the published
checkpoint `79999_iter.pth` (19 classes, CelebAMask-HQ), so that it loads unchanged.

Owns the layers. Leaves loading to `networks`, and the use of the labels to `parsing`.
Source: BiSeNet, arXiv:1808.00897, in the variant of zllrunning/face-parsing.PyTorch that has no spatial path.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 19


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _mean(x: Tensor) -> Tensor:
    """The mean over height and width: (B, C, H, W) to (B, C, 1, 1)."""
    return x.mean(dim=(2, 3), keepdim=True)


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a short cut: (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.downsample(x) + self.bn2(self.conv2(y)))


class _ResNet18(nn.Module):
    """(B, 3, H, W) to features at 1/8 (128 channels), 1/16 (256) and 1/32 (512) of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.layer1 = self._level(64, 64, 1)
        self.layer2 = self._level(64, 128, 2)
        self.layer3 = self._level(128, 256, 2)
        self.layer4 = self._level(256, 512, 2)

    @staticmethod
    def _level(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(_Residual(inputs, outputs, stride), _Residual(outputs, outputs, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class _ConvNormRelu(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = _conv(inputs, outputs, size), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Attention(nn.Module):
    """Weight each channel by its mean over the whole picture."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _ConvNormRelu(inputs, outputs)
        self.conv_atten, self.bn_atten = _conv(outputs, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(_mean(x))))


class _ContextPath(nn.Module):
    """(B, 3, H, W) to two maps of 128 channels at 1/8: the finest features, and the deep ones scaled up."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = _ResNet18()
        self.arm16, self.arm32 = _Attention(256, 128), _Attention(512, 128)
        self.conv_head32, self.conv_head16 = _ConvNormRelu(128, 128), _ConvNormRelu(128, 128)
        self.conv_avg = _ConvNormRelu(512, 128, size=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, deepest = self.resnet(x)
        deep = self.arm32(deepest) + self.conv_avg(_mean(deepest))
        deep = self.conv_head32(functional.interpolate(deep, sixteenth.shape[2:]))
        deep = self.arm16(sixteenth) + deep
        return eighth, self.conv_head16(functional.interpolate(deep, eighth.shape[2:]))


class _Fusion(nn.Module):
    """Two maps of 128 channels to one of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = _ConvNormRelu(256, 256, size=1)
        self.conv1, self.conv2 = _conv(256, 64, 1), _conv(64, 256, 1)

    def forward(self, fine: Tensor, deep: Tensor) -> Tensor:
        joined = self.convblk(torch.cat((fine, deep), dim=1))
        weight = torch.sigmoid(self.conv2(functional.relu(self.conv1(_mean(joined)))))
        return cast(Tensor, joined * weight + joined)


class _Head(nn.Module):
    def __init__(self, inputs: int, middle: int) -> None:
        super().__init__()
        self.conv = _ConvNormRelu(inputs, middle)
        self.conv_out = _conv(middle, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv_out(self.conv(x)))


class BiSeNet(nn.Module):
    """(B, 3, H, W) float32, RGB normalised with ImageNet's mean and deviation, to (B, 19, H, W) logits.

    H and W are multiples of 32. `conv_out16` and `conv_out32` are used in training only: they exist because the
    checkpoint has their tensors, and never run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cp = _ContextPath()
        self.ffm = _Fusion()
        self.conv_out = _Head(256, 256)
        self.conv_out16, self.conv_out32 = _Head(128, 64), _Head(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv_out(self.ffm(*self.cp(x)))
        return functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
