"""Language packs: class names in the forms that prompts need, and the prompts.

A pack knows nothing of gender, case or articles. A class has a text for each named form (`bare`,
`indefinite`, `definite`, `of`, ..., whatever the language needs), and a template names the form it
wants: `una foto di {indefinite}`. So every prompt agrees, in any language.

A pack is a folder with

    classes.tsv     header `class_id`, `synonyms`, then one column per form, `bare` among them;
                    synonyms (bare forms) are separated by |
    templates.txt   one template a line; lines that start with # are notes

Italian keeps gender and number instead and derives the forms by code (`languages.it`).
"""

import csv
import dataclasses
import string
from collections.abc import Mapping
from pathlib import Path

from clip_italian.config import ConfigError

BARE = "bare"


@dataclasses.dataclass(frozen=True)
class ClassName:
    """One class.

    Attributes:
      class_id: what data sets call it (a WordNet id such as `n01440764`).
      forms: name of the form → text; `bare` is always there.
      synonyms: other bare names in use.
    """

    class_id: str
    forms: Mapping[str, str]
    synonyms: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LanguagePack:
    """Class names and templates of one language.

    Attributes:
      classes: in the order of their index.
      templates: each names one form in braces.
    """

    classes: tuple[ClassName, ...]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises `ConfigError` naming what is wrong: an empty or unknown form, a repeated id."""
        if not self.classes or not self.templates:
            raise ConfigError("language pack: it needs at least one class and one template")
        forms = set(self.classes[0].forms)
        seen: set[str] = set()
        for one in self.classes:
            if one.class_id in seen:
                raise ConfigError(f"language pack: class {one.class_id} occurs twice")
            seen.add(one.class_id)
            if set(one.forms) != forms or BARE not in forms:
                raise ConfigError(
                    f"language pack: class {one.class_id} has the forms {sorted(one.forms)}; "
                    f"all classes need the same ones, {BARE!r} among them"
                )
            empty = [name for name, text in one.forms.items() if not text.strip()]
            if empty:
                raise ConfigError(f"language pack: class {one.class_id} has no text for {empty}")
        for template in self.templates:
            if _form_of(template) not in forms:
                raise ConfigError(
                    f"language pack: template {template!r} must name one form in braces, "
                    f"one of {sorted(forms)}"
                )

    def prompts(self, class_index: int) -> list[str]:
        """The class in every template."""
        return [template.format(**self.classes[class_index].forms) for template in self.templates]


def read_pack(folder: str | Path) -> LanguagePack:
    """Reads the pack in a folder.

    Raises:
      ConfigError: a file is missing, or what it holds is no pack.
    """
    folder = Path(folder)
    try:
        with (folder / "classes.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        lines = (folder / "templates.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"language pack {str(folder)!r} cannot be read ({error})") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values() or "class_id" not in row:
            raise ConfigError(
                f"language pack: {folder / 'classes.tsv'}, line {number}: as many columns as the "
                "header has are needed, `class_id` among them"
            )
    classes = tuple(
        ClassName(
            row.pop("class_id"),
            synonyms=split_synonyms(row.pop("synonyms", "")),
            forms=dict(row),
        )
        for row in rows
    )
    return LanguagePack(classes, read_templates(lines))


def split_synonyms(text: str) -> tuple[str, ...]:
    """`a|b` → (`a`, `b`)."""
    return tuple(part.strip() for part in text.split("|") if part.strip())


def read_templates(lines: list[str]) -> tuple[str, ...]:
    """The lines that are neither blank nor notes."""
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _form_of(template: str) -> str | None:
    """The one name in braces; None when there are none, several, or a brace is left open."""
    try:
        named = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        return None
    return named[0] if len(named) == 1 else None
