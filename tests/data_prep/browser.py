"""Opens a page in headless Chromium and returns what its scripts made of it."""

import json
import shutil
import subprocess

import pytest


def dump_dom(page, profile, milliseconds):
    """The page after so many milliseconds of its own time; skips where there is no Chromium."""
    browser = shutil.which("chromium") or pytest.skip("needs Chromium")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", f"--virtual-time-budget={milliseconds}", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def dump_in_frame(text, wrapper, width, folder, milliseconds):
    """As `dump_dom`, of a page with `text` in a frame of that many pixels.

    Args:
      text: HTML of the page; what is folded away is opened.
      wrapper: HTML around it, with WIDTH and CONTENTS in their places.
      width: of the frame, pixels.
      folder: for the browser's files.
      milliseconds: of the page's own time.
    """
    contents = json.dumps(text.replace("<details>", "<details open>")).replace("</", "<\\/")
    path = folder / "wrapper.html"
    code = wrapper.replace("WIDTH", str(width)).replace("CONTENTS", contents)
    path.write_text(code, encoding="utf-8")
    return dump_dom(path, folder / "profile", milliseconds)
