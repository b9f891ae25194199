"""What a training run consists of besides the loop in train.py."""
