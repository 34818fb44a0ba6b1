"""The real nnictl; but it gives its manager three seconds, which a busy machine may not."""

import nni.experiment.launcher as own
from nni.tools.nnictl.nnictl import parse_args

own._check_rest_server.__defaults__ = (300, None)
parse_args()
