"""NNI's grid search that makes no trial twice when its experiment goes on."""

from __future__ import annotations

from pathlib import Path

from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner


class GridSearch(GridSearchTuner):
    """Grid search that knows at ``nnictl resume`` every trial there is.

    NNI tells a grid of the trials that have a result; those that were cut off, and go on by
    themselves, it proposes a second time, and the last points of the grid are never tried. (With
    ``nni-gconv resume`` NNI's own grid is told of all.)

    Parameters
    ----------
    optimize_mode : str, optional
        Without effect, as for NNI's own.

    Examples
    --------
    In an experiment file::

        tuner: {className: nni_gconv.tuner.GridSearch, codeDirectory: .}
    """

    def load_checkpoint(self) -> None:
        """Take all trials of the experiment as tried; NNI calls it when one goes on."""
        from nni_gconv.compat import read_tried

        folder = self.get_checkpoint_path()
        if folder is not None:
            self.import_data(read_tried(Path(folder).parent))
