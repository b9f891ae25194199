"""VOLO (volo.py), its weights (weights.py), and the other networks of timm beside it (factory.py).

Importing this package registers volo_d1 … volo_d5 with timm.
"""
from models.checkpoint_schema import check_saved
from models.drop_path import set_rows
from models.factory import create_model, default_cfg, fetch_weights, has_fixed_size, restore_model, state_dict_at
from models.features import logits_and_features
from models.token_label import combine_logits, token_label_loss
from models.volo import VARIANTS, VOLO, volo_d1, volo_d2, volo_d3, volo_d4, volo_d5
from models.weights import PUBLISHED, WeightsError, heads_of, load_weights, normalisation_of, read_file

__all__ = ['PUBLISHED', 'VARIANTS', 'VOLO', 'WeightsError', 'check_saved', 'combine_logits', 'create_model',
           'default_cfg', 'fetch_weights', 'has_fixed_size', 'heads_of', 'load_weights', 'logits_and_features',
           'normalisation_of', 'read_file', 'restore_model', 'set_rows', 'state_dict_at', 'token_label_loss',
           'volo_d1', 'volo_d2', 'volo_d3', 'volo_d4', 'volo_d5']
