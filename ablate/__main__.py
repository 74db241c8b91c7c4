"""`python -m ablate`: the command line without an installed script."""

import os
import sys

here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.abspath(sys.path[0]) != here:
    # `-m` puts the current folder first; a `registry` that lies there is not ours.
    del sys.path[0]

from ablate.cli import main  # noqa: E402

sys.exit(main())
