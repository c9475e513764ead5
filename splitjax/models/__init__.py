"""Models as ordered stages, and the way from and to pretrained weights."""
