"""Linear models with scikit-learn's manners. They need the extra `gradstep[linear]`."""

try:
    from sklearn.utils.validation import validate_data  # noqa: F401 - as new as what is needed
except ImportError as error:
    raise ImportError(
        'gradstep.linear needs scikit-learn 1.6 or later: pip install "gradstep[linear]"'
    ) from error

from ._descent import GDClassifier, GDRegressor
from ._sag import SAGClassifier, SAGRegressor

__all__ = ["GDClassifier", "GDRegressor", "SAGClassifier", "SAGRegressor"]
