"""Whom to tell when a rule holds: a command of the user's, or a web address.

What is told travels as one argument or as JSON, never through a shell.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx

from ceval_suite.backends.base import Say
from ceval_suite.errors import ConfigError
from ceval_suite.secrecy import clean

PATIENCE = 60.0
"""Seconds that a command or an address may take."""

Tell = Callable[[str], None]


def command(line: str, say: Say) -> Tell:
    """Runs a program with its arguments and the sentence behind them.

    Raises:
        ConfigError: a line that is no command.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"the command '{line}' cannot be read ({error}).") from error
    if not words:
        raise ConfigError("an empty command tells nobody; name a program.")

    def tell(sentence: str) -> None:
        try:
            done = subprocess.run([*words, sentence], timeout=PATIENCE, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            say(f"{words[0]}: could not be run ({error})")
        else:
            if done.returncode:
                say(f"{words[0]} ended with exit code {done.returncode}")

    return tell


def webhook(url: str, say: Say) -> Tell:
    """Posts `{"text": sentence}` to an address, as chat services take it.

    Raises:
        ConfigError: not an http or https address.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{clean(url)}: a webhook is an http or https address.")

    def tell(sentence: str) -> None:
        try:
            httpx.post(url, json={"text": sentence}, timeout=PATIENCE).raise_for_status()
        except httpx.HTTPError as error:
            # the address itself may be the secret
            say(f"the webhook at {urlsplit(url).hostname} failed ({type(error).__name__})")

    return tell
