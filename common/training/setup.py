"""The network of a training run: its initial weights found, the network built, what it costs said."""
import math

import torch

from common.runtime.errors import UserError
from models import (
    PUBLISHED,
    WeightsError,
    create_model,
    default_cfg,
    fetch_weights,
    heads_of,
    load_weights,
    normalisation_of,
    read_file,
)
from models.cost import training_cost


def find_weights(cfg):
    """What PRETRAINED asks for, read before anything long begins: (a record for the log, what the file holds or None).

    The record has their `source` and, unless that is 'scratch', the `mean` and `std` that belong to them.
    """
    wanted = cfg.PRETRAINED
    if wanted is False:
        return {'source': 'scratch'}, None
    try:
        if wanted in (True, 'auto'):
            source, content = fetch_weights(cfg.MODEL, cfg.IMG_SIZE)
            if cfg.MODEL in PUBLISHED:
                source += f' (published for {" and ".join(map(str, PUBLISHED[cfg.MODEL]))} pixels)'
        else:
            source, content = wanted, read_file(wanted)
            if not isinstance(content, dict):
                raise WeightsError(f'{wanted}: there is no state dict in it')
    except WeightsError as error:
        if wanted != 'auto':
            raise UserError(f'PRETRAINED = {wanted!r}: {error}') from error
        print(f'!!! NO PRETRAINED WEIGHTS: training from scratch takes far more pictures and epochs !!!\n{error}')
        return {'source': 'scratch', 'reason': str(error)}, None
    published = default_cfg(cfg.MODEL)
    mean, std = normalisation_of(content) or (published['mean'], published['std'])
    return {'source': source, 'mean': list(mean), 'std': list(std)}, content


def build_network(cfg, classes, weights, content):
    """(network, its keyword arguments), the weights loaded into it; what was done goes into `weights`."""
    kwargs = {'return_dense': True, 'mix_token': True} if cfg.TOKEN_LABEL else {}
    kwargs |= cfg.MODEL_KWARGS
    try:
        net = create_model(cfg.MODEL, num_classes=len(classes), img_size=cfg.IMG_SIZE, drop_path_rate=cfg.DROP_PATH,
                           **kwargs)
        if content is not None:
            weights |= load_weights(net, content)
    except WeightsError as error:
        raise UserError(f'PRETRAINED = {cfg.PRETRAINED!r}: {error}') from error
    except ValueError as error:
        advice = f': set DROP_PATH = 0, {cfg.MODEL} has none' if 'drop_path' in str(error) else ''
        raise UserError(f'MODEL, MODEL_KWARGS, IMG_SIZE: {error}{advice}') from error
    print_weights(weights, content, classes)
    try_out(cfg, net, classes)
    if cfg.FREEZE_EPOCHS and not heads_of(net):
        raise UserError(f'FREEZE_EPOCHS: timm does not say which part of {cfg.MODEL} is the head, set it to 0')
    if cfg.GRAD_CHECKPOINTING:
        try:
            net.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise UserError(f'GRAD_CHECKPOINTING: {cfg.MODEL} cannot do it, set it to False') from error
    return net, kwargs


def print_weights(weights, content, classes):
    """What was loaded, resized and dropped, a line for each."""
    for key in ('source', 'loaded', 'resized', 'dropped'):
        if weights.get(key):
            text = ', '.join(weights[key]) if isinstance(weights[key], list) else weights[key]
            print(f'weights: {key:7} {text}{" tensors" if key == "loaded" else ""}')
    if content is not None and content.get('classes', classes) != classes and not weights['dropped']:
        print('weights: the head comes along, though it was trained on other classes: their number is the same')


def try_out(cfg, net, classes):
    """Raise UserError unless the network makes a logit for each class out of a picture."""
    try:
        with torch.no_grad():
            shape = getattr(net.eval()(torch.zeros(1, 3, *cfg.IMG_SIZE)), 'shape', None)
    except Exception as error:  # each of timm's networks has words of its own for it
        raise UserError(f'{cfg.MODEL} takes no pictures of IMG_SIZE = {cfg.IMG_SIZE}: {error}') from error
    if shape != (1, len(classes)):
        raise UserError(f'MODEL: {cfg.MODEL} is no classifier, it gives {shape} instead of a logit for each class')


def print_cost(cfg, net, device, dtype):
    """A line with the network's parameters, multiply-adds and memory."""
    shared = torch.cuda.device_count() if cfg.USE_DP and device.type == 'cuda' else 1
    batch = math.ceil(cfg.BATCH_SIZE / shared)
    text = f'{cfg.MODEL}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters'
    try:
        multiply_adds, memory = training_cost(net.train(), cfg.IMG_SIZE, batch, dtype, copies=2 + cfg.USE_EMA)
        text += (f', {multiply_adds / 1e9:.2f} G multiply-adds a picture; a step of {batch} pictures needs at '
                 f'least {memory / 2 ** 30:.1f} GiB of memory{" on each GPU" if shared > 1 else ""}')
    except Exception as error:  # a network of timm that looks into its numbers: they are fake there
        if 'more than 1 value per channel' in str(error):
            raise UserError(f'BATCH_SIZE = {cfg.BATCH_SIZE}: too few for the BatchNorm of {cfg.MODEL}') from error
        text += f'; its multiply-adds and memory could not be worked out ({type(error).__name__})'
    print(text)
