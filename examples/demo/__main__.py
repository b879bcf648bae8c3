"""`python -m examples.demo`: see demo.py."""

import sys

from examples.demo.demo import main

sys.exit(main())
