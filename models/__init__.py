"""VOLO (volo.py), its weights (weights.py), and the other networks of timm beside it (factory.py).

Importing this package registers volo_d1 … volo_d5 with timm.
"""
from models.errors import WeightsError
from models.factory import (
    create_model,
    default_cfg,
    fetch_weights,
    has_fixed_size,
    logits_and_features,
    restore_model,
    volo_d1,
    volo_d2,
    volo_d3,
    volo_d4,
    volo_d5,
)
from models.layers import set_rows
from models.token_label import combine_logits, token_label_loss
from models.volo import VARIANTS, VOLO
from models.weights import PUBLISHED, LoadReport, check_saved, heads_of, load_weights, normalisation_of, read_file

__all__ = ['PUBLISHED', 'VARIANTS', 'VOLO', 'LoadReport', 'WeightsError', 'check_saved', 'combine_logits',
           'create_model', 'default_cfg', 'fetch_weights', 'has_fixed_size', 'heads_of', 'load_weights',
           'logits_and_features', 'normalisation_of', 'read_file', 'restore_model', 'set_rows',
           'token_label_loss', 'volo_d1', 'volo_d2', 'volo_d3', 'volo_d4', 'volo_d5']
