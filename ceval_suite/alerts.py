"""Whom to tell when a rule holds: a command of the user's, or a web address.

What is told travels as one argument or as JSON, never through a shell. Arguments and addresses may
be secrets and are never shown; who cannot be told is said, and ends nothing.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import PurePath
from urllib.parse import urlsplit

import httpx

from ceval_suite.backends.base import Say
from ceval_suite.errors import ConfigError
from ceval_suite.secrecy import without_credentials

PATIENCE = 60.0
"""Seconds that a command or an address may take."""

STDERR = 2
"""Where a command's output goes: stdout is for results."""

Tell = Callable[[str], None]


def command(line: str, say: Say) -> Tell:
    """Runs a program with its arguments and the sentence behind them.

    Raises:
        ConfigError: a line that is no command.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"the alert command cannot be read ({error}).") from None
    if not words:
        raise ConfigError("an empty command tells nobody; name a program.")

    name = PurePath(words[0]).name.partition("=")[0]

    def tell(sentence: str) -> None:
        try:
            done = subprocess.run(  # noqa: S603
                [*words, sentence], stdout=STDERR, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            say(f"{name}: did not end in {PATIENCE:g} s, and was ended")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            say(f"{name}: could not be run ({reason})")
        else:
            if done.returncode:
                say(f"{name} ended with exit code {done.returncode}")

    return tell


def webhook(url: str, say: Say) -> Tell:
    """Posts `{"text": sentence}` to an address, as chat services take it.

    Raises:
        ConfigError: not an http or https address.
    """
    try:
        urlsplit(url)  # which refuses brackets that httpx takes for a name
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL()
    port = parsed.port or 1
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 < port < 1 << 16:
        shown = without_credentials(url)
        raise ConfigError(f"{shown}: a webhook is an http or https address (https://host/path).")

    def tell(sentence: str) -> None:
        try:
            httpx.post(parsed, json={"text": sentence}, timeout=PATIENCE).raise_for_status()
        except httpx.HTTPStatusError as error:
            say(f"the webhook at {parsed.host} failed (status {error.response.status_code})")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError, OSError) as error:
            # also a proxy that the environment names and cannot be used
            say(f"the webhook at {parsed.host} failed ({type(error).__name__})")

    return tell
