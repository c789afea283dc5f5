"""Opens a page in headless Chromium and returns what its scripts made of it."""

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
