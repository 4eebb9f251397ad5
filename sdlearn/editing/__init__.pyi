from . import inpainting as inpainting
from . import sdedit as sdedit
from .inpainting import inpaint as inpaint
from .sdedit import image_to_image as image_to_image
