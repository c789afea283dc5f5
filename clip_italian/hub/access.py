"""Talking to the Hugging Face hub: with a token that may write, and again when that may help."""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import requests
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import XetAuthorizationError, XetError

from clip_italian.config import ConfigError

T = TypeVar("T")

_WAITS = (1, 2, 4, 8)  # seconds before each further try
_PASSING = frozenset({408, 409, 412, 429, 500, 502, 503, 504})  # may be well at the next try
# What huggingface_hub and hf_xet raise when something between here and the hub goes wrong.
_TROUBLE = (
    requests.RequestException,
    ConnectionError,
    TimeoutError,
    RuntimeError,
    XetError,
    ValueError,
)


def check_token(api: HfApi) -> None:
    """What can be said of going there before anything is sent."""
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, and forbids pushing; unset it"
        )
    token = get_token()
    if token is None:
        raise ConfigError(
            "pushing needs a token with write permission, and there is none: make one at "
            f"{api.endpoint}/settings/tokens, then run `hf auth login` or set HF_TOKEN"
        )
    if not re.fullmatch(r"[!-~]+", token):  # else an error of the HTTP client would show it
        raise ConfigError(
            "the token holds blanks or letters that no token has; run `hf auth login` again, "
            "or set HF_TOKEN anew"
        )


def user_of(api: HfApi) -> str:
    """The name that the token belongs to; refuses a token that may only read."""
    known = ask(f"the hub at {api.endpoint}", api.whoami)
    role = ((known.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise ConfigError(
            f"the token of {known['name']} may only read: make one with write permission at "
            f"{api.endpoint}/settings/tokens, then run `hf auth login` or set HF_TOKEN"
        )
    return known["name"]


def ask(where: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Calls the hub, again after a pause when that may help; `where` begins the error message."""
    waits = iter(_WAITS)
    while True:
        try:
            return call(*args, **kwargs)
        except ConfigError:
            raise
        except _TROUBLE as error:
            told, again = _judge(where, error)
        wait = next(waits, None) if again else None
        if wait is None:
            # Not in `except`: its chain would show signed addresses, and what the hub has said.
            raise ConfigError(told)
        time.sleep(wait)


def _judge(where: str, error: BaseException) -> tuple[str, bool]:
    """What to tell a person of an error, and whether to try again."""
    # An upload's error is the cause of the one that huggingface_hub raises.
    cause = (error.__cause__ if isinstance(error, RuntimeError) else None) or error
    passing = _passing(cause)
    # Uploads (PUT) are the one thing that huggingface_hub itself tries several times.
    tried = getattr(getattr(cause, "request", None), "method", "") == "PUT"
    return _told(where, cause, passing), passing and not tried


def _passing(error: BaseException) -> bool:
    if isinstance(error, requests.HTTPError):
        return _status(error) in _PASSING or _is_storage(error)
    if isinstance(error, requests.JSONDecodeError):  # a page where the hub answers with JSON
        return True
    return not isinstance(error, ValueError | XetAuthorizationError)


def _status(error: BaseException) -> int:
    """The HTTP status that an error is about; 0 where there is none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _is_storage(error: requests.HTTPError) -> bool:
    """Whether the place where large files are stored says it, and not the hub.

    Addresses there are signed for a time, so that no token is sent: 403 says that it has run out.
    """
    return error.request is not None and "authorization" not in error.request.headers


def _told(where: str, error: BaseException, passing: bool) -> str:
    if passing:
        return (
            f"{where} cannot be reached, or does not work now ({_text(error)}). "
            "Run the same command again: what has arrived is kept"
        )
    if _status(error) == 401:
        return (
            f"{where} does not accept the token ({_text(error)}): make a new one at its "
            "/settings/tokens, then run `hf auth login` or set HF_TOKEN, which goes first"
        )
    if _status(error) == 403:
        return (
            f"{where}: the token may not write there ({_text(error)}). Give one with write "
            "permission for it (`hf auth login` or HF_TOKEN), or name another repository"
        )
    return f"{where} refuses: {_text(error)}"


def _text(error: BaseException) -> str:
    """What an error says, in one line, without the signatures of addresses and the token."""
    said = getattr(error, "server_message", None)
    text = f"{_status(error)}: {said}" if said else str(_root(error))
    text = re.sub(r"\?[^\s'\"]+", "", " ".join(text.split()))
    return text.replace(get_token() or "\0", "***")[:400]


def _root(error: BaseException) -> BaseException:
    """The reason within what urllib3 and requests have wrapped around it."""
    around = (getattr(error, "reason", None), *error.args)
    inner = next((one for one in around if isinstance(one, BaseException)), None)
    return _root(inner) if inner else error
