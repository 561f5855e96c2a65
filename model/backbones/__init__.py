"""Pretrained image networks by name, and what a decoder or gallery needs of them."""
