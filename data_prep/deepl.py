"""Translates with DeepL, through its official client, which retries what may be retried."""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence

import deepl

from clip_italian.config import ConfigError
from data_prep.translate import MAX_CHARACTERS, TranslateOptions, TranslationError

_log = logging.getLogger(__name__)

# DeepL's limits: so many texts, and 128 KiB with all that stands beside them.
_REQUEST_TEXTS = 50
_REQUEST_BYTES = 124 * 1024
_KEPT = "; all translations so far are kept in the cache: run the same command again to go on"


class DeepLTranslator:
    """The paid service; satisfies `data_prep.translate.Translator`.

    The key is taken from the environment variable DEEPL_AUTH_KEY, the server from
    DEEPL_SERVER_URL where it is set (as in DeepL's own command-line tool).

    Attributes:
      name: for records.
      identity: what the words of a translation depend on. DeepL does not tell the version of its
        models.
    """

    name = "deepl"

    def __init__(self, options: TranslateOptions) -> None:
        """Makes the client; sends nothing yet.

        Raises:
          ConfigError: no key.
        """
        key = os.environ.get("DEEPL_AUTH_KEY", "").strip()
        # A key with a line break in it would be quoted in full by the error of the HTTP library.
        if not re.fullmatch(r"[!-~]+", key):
            raise ConfigError(
                "translator = 'deepl' needs the account's key in the environment variable "
                "DEEPL_AUTH_KEY; it is unset or no key"
            )
        self._key, self._options = key, options
        self.identity = f"deepl formality={options.formality} glossary={options.glossary}"
        # Its debug lines hold all texts, and whatever the server says.
        logging.getLogger("deepl").setLevel(logging.INFO)
        # Each answer is paid for: asking again because one was slow would pay twice.
        deepl.http_client.min_connection_timeout = 60.0
        server = os.environ.get("DEEPL_SERVER_URL") or None
        self._client = deepl.DeepLClient(key, server_url=server)

    def translate(self, texts: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yields text → translation, one request after another; long texts are cut.

        Raises:
          TranslationError: the quota is used up, the key is refused, or DeepL cannot be reached.
        """
        long = sum(len(text) > MAX_CHARACTERS for text in texts)
        if long:
            _log.warning("%d texts are cut to %d characters", long, MAX_CHARACTERS)
        for batch in requests(texts):
            results = self._ask([text[:MAX_CHARACTERS] for text in batch])
            yield dict(zip(batch, results, strict=True))

    def _ask(self, texts: list[str]) -> list[str]:
        source, target = self._options.pair
        try:
            results = self._client.translate_text(
                texts,
                source_lang=source,
                target_lang=target,
                formality=self._options.formality,
                glossary=self._options.glossary or None,
            )
        except deepl.QuotaExceededException:
            message = "DeepL: the account's quota of characters is used up" + _KEPT
        except Exception as error:  # the client's own, and what it lets through of odd answers
            kind = type(error).__name__
            # A server may well quote the key that it refuses.
            message = f"DeepL: {kind}: {str(error).replace(self._key, '***')}{_KEPT}"
        else:
            if isinstance(results, list) and len(results) == len(texts):
                return [result.text for result in results]
            message = "DeepL: the answer does not hold one translation for each text" + _KEPT
        raise TranslationError(message)  # out here, so that it carries no other error with it


def requests(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cuts a list into requests within DeepL's limits (50 texts, 128 KiB), in order."""
    batch: list[str] = []
    size = 0
    for text in texts:
        more = len(json.dumps(text[:MAX_CHARACTERS])) + 2  # as it is sent: ASCII, and ", "
        if batch and (len(batch) == _REQUEST_TEXTS or size + more > _REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += more
    if batch:
        yield batch
