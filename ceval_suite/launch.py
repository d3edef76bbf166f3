"""The command as it is started: one process, or several that torchrun started together."""

from __future__ import annotations

import logging
import os
import sys

from ceval_suite import cli


def main() -> None:
    """Run the command line in the first process; the others follow it until it ends."""
    # torch tells users what it thinks of how torchao registers its classes
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    # looked up here already: whoever is alone need not wait for torch
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        cli.main()
        return
    from ceval_suite import backends
    from ceval_suite.backends import ranks

    if not ranks.first():
        sys.exit(backends.follow())
    ranks.join()
    with ranks.heeding(cli.say):
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise  # torchrun ends the others
        except Exception as error:
            if os.environ.get("CEVAL_SUITE_DEBUG") or not ranks.lost(error):
                raise
            cli.say("error: another process ended without a word; finished records are kept.")
            sys.exit(1)
        ranks.leave(tell_others=True)
