from . import sdedit as sdedit
from .sdedit import image_to_image as image_to_image
