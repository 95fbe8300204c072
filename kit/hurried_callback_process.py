"""The callback process, whose attempts are soon given up and soon made again. It differs in nothing else.

Run by the supervisor in the place of ``idagg.run.callback_process``.
"""

from __future__ import annotations

import functools
import sys
from unittest import mock

from idagg.deliver.callback import Callbacks
from idagg.run import callback_process

TIMEOUT_S = 2.0
PAUSE_S = 0.2

if __name__ == "__main__":
    hurried = functools.partial(Callbacks, timeout_s=TIMEOUT_S, pause_s=lambda attempts, **_: PAUSE_S)
    with mock.patch.object(callback_process, "Callbacks", hurried):
        sys.exit(callback_process.main())
