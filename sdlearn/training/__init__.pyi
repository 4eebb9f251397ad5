from .clip import train_clip as train_clip
from .model import new_pipeline as new_pipeline
from .model import pack as pack
from .pictures import Pictures as Pictures
from .unet import train_unet as train_unet
from .vae import train_vae as train_vae
