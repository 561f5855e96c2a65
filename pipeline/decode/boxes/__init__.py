"""Formats whose files are made of boxes: what stands in the boxes, and JPEG XL and JPEG 2000, which come in them."""
