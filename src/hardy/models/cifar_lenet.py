"""LeNet-5 with rectified linear units.

LeCun, Bottou, Bengio, Haffner. "Gradient-based learning applied to document recognition". Proc. IEEE 86(11), 1998.
It is the variant in use since about 2012: ReLU where the paper has tanh, max-pooling where it has averages with trained
coefficients, all 16 maps of the second convolution connected to all 6 of the first, and a linear last layer in place of
radial basis functions. 62,006 parameters for 10 classes of RGB images, 61,706 for gray ones.

The net is made for 32x32 pixels. Smaller images, such as MNIST's 28x28, are centred in 32x32 as in the paper; with
zeros, which is the mean colour where the model normalises. Of larger ones, average pooling makes 5x5 maps.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardy.models.cifar_layers import init_convs

__all__ = ["LeNet5", "lenet5"]

SIDE = 32  # pixels


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each with a max-pooling behind it, and three linear layers; ``forward`` returns logits.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(5)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.relu3 = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU(inplace=True)
        self.fc3 = nn.Linear(84, num_classes)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        rows, columns = max(0, SIDE - x.shape[2]), max(0, SIDE - x.shape[3])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(self.flatten(self.avgpool(x))))
        logits: Tensor = self.fc3(self.relu4(self.fc2(x)))
        return logits


def lenet5(*, num_classes: int, in_channels: int) -> LeNet5:
    """Build LeNet-5 for images of 32x32 pixels; other sizes are fitted as the module says."""
    return LeNet5(num_classes=num_classes, in_channels=in_channels)
