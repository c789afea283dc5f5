"""The code of a model card. Needs nothing but Python: virtual environments without us use it."""


def snippets(text, language="python"):
    """(heading that it stands under, code) of each fenced block of a language, in order."""
    found, heading, lines = [], "", None
    for line in text.splitlines():
        if lines is not None and line != "```":
            lines.append(line)
        elif lines is not None:
            found.append((heading, "\n".join(lines) + "\n"))
            lines = None
        elif line == f"```{language}":
            lines = []
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()
    return found
