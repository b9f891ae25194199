"""models/drop_path.py: stochastic depth, the same for a batch in one process and for its rows in several."""
import timm.layers
import torch
from helpers import tiny_volo

from models import set_rows
from models.drop_path import DropPath


def test_draws_as_timm_does():
    x, results = torch.randn(50, 3, 2), []
    for drop in (DropPath(0.4), timm.layers.DropPath(0.4)):
        torch.manual_seed(0)
        results.append(drop(x))
        assert drop.eval()(x) is x
    assert torch.equal(*results) and 10 < (results[0] == 0).all((1, 2)).sum() < 30
    assert DropPath(0.)(x) is x


def test_processes_that_share_a_batch_draw_what_one_would():
    """Else the same random numbers would drop the same paths in each of them."""
    net, images, logits = tiny_volo(drop_path_rate=0.9).train(), torch.randn(6, 3, 64, 64), []
    for norm in net.patch_embed.conv[1::3]:
        norm.eval()  # what follows then depends on each image alone
    for rows in ([0, 1, 2, 3, 4, 5], [0, 5], [1, 2, 3, 4]):
        set_rows(net, rows, 6)
        torch.manual_seed(1)
        logits.append(net(images[rows]))
    whole, first, second = logits
    torch.testing.assert_close(torch.cat([first[:1], second, first[1:]]), whole)
