from .model import GUIDANCE as GUIDANCE
from .model import STEPS as STEPS
from .model import is_postcards as is_postcards
from .model import settings as settings
from .vocabulary import about_unknown_words as about_unknown_words
from .vocabulary import unknown_words as unknown_words
