"""How postcards was trained: the VAE, CLIP, then the U-Net."""
