from .catalogue import check as check
from .catalogue import exercise as exercise
from .examination import Exercise as Exercise
from .examination import Mistake as Mistake
from .examination import NotYet as NotYet
from .notes import compare as compare
from .notes import predict as predict
from .notes import progress as progress
