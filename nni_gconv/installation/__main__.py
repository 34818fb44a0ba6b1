"""``python -m nni_gconv.installation``: as ``nni-gconv doctor``, where that cannot start."""

import sys

from nni_gconv.installation import blocks, examine

results = examine()
sys.stdout.write("".join(f"{result.line()}\n" for result in results))
sys.exit(2 if blocks(results) else 0)
