from . import dreambooth as dreambooth
from . import fit as fit
from . import textual_inversion as textual_inversion
from .dreambooth import finetune_subject as finetune_subject
from .dreambooth import save_lora as save_lora
from .textual_inversion import learn_token as learn_token
from .textual_inversion import save_token as save_token
