"""``python -m dynamo.cli`` is ``dynamo``."""

import sys

from dynamo.cli.entry import main

sys.exit(main())
