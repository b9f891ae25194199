"""The stem of VOLO: convolutions that turn an image into tokens of 8x8 pixels."""
import torch
import torch.nn.functional as F
from torch import nn

PATCH_SIZE = 8  # side of a stage-1 token in pixels: the stem's stride of 2 times its projection's 4


class PatchEmbed(nn.Module):
    """Three convolutions at half resolution, then one that makes the tokens.

    (B, in_chans, H, W) -> (B, embed_dim, H/8, W/8).
    """

    def __init__(self, in_chans: int, hidden_dim: int, embed_dim: int) -> None:
        super().__init__()
        layers = []
        for chans, kernel, stride in ((in_chans, 7, 2), (hidden_dim, 3, 1), (hidden_dim, 3, 1)):
            layers += [nn.Conv2d(chans, hidden_dim, kernel, stride, padding=kernel // 2, bias=False),
                       nn.BatchNorm2d(hidden_dim), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(hidden_dim, embed_dim, kernel_size=PATCH_SIZE // 2, stride=PATCH_SIZE // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm, act in zip(self.conv[::3], self.conv[1::3], self.conv[2::3], strict=True):
            x = act(norm(conv(x)) if norm.training else conv_norm(conv, norm, x))
        return self.proj(x)


def conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """norm(conv(x)) in evaluation, as a single convolution: BatchNorm is then only a scale and a shift per channel."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale.view(-1, 1, 1, 1)  # (out, in, kernel, kernel) * (out, 1, 1, 1)
    return F.conv2d(x, weight, norm.bias - norm.running_mean * scale, conv.stride, conv.padding)
